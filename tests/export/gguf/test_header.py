"""A header is byte for byte what the gguf package's own writer makes from the same fields and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from arrowquant_dist.export.gguf.header import header
from arrowquant_dist.export.tensors import OutputTensor

FIELDS = {
    "arrowquant.export": "a mark",
    "general.architecture": "llama",
    "general.name": "naïve 日本語 😀",
    "llama.block_count": 3,
    "llama.context_length": 2**32 - 1,
    "llama.rope.freq_base": 1e6 / 3,
    "tokenizer.ggml.tokens": ["", "a", "▁é", "😀" * 50],
    "tokenizer.ggml.token_type": [1, 3, 6, 1],
    "tokenizer.ggml.scores": [0.0, -1.5, -1e30, 1 / 3],
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_eos_token": False,
}
SPLIT = {"split.no": 1, "split.count": 65535, "split.tensors.count": 70000}
TENSORS = [
    OutputTensor("token_embd.weight", "BF16", (5, 32), 320),
    OutputTensor("blk.0.attn_q.weight", "Q4_0", (3, 64), 108),  # fills up to 128
    OutputTensor("blk.0.ffn_up.weight", "TQ2_0", (1, 256), 66),
    OutputTensor("blk.0.ffn_down.weight", "Q8_0", (2, 32), 68),
    OutputTensor("blk.0.ffn_gate.weight", "Q4_1", (2, 32), 40),
    OutputTensor("output_norm.weight", "F32", (32,), 128),
    OutputTensor("output.weight", "F16", (5, 32), 320),
]


def theirs(fields: dict[str, Any], tensors: list[OutputTensor], path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, fields["general.architecture"])
    for key, value in fields.items():
        match value:
            case _ if key == "general.architecture":
                pass
            case bool():
                writer.add_bool(key, value)
            case int() if key.startswith("split."):
                (writer.add_int32 if key.endswith("tensors.count") else writer.add_uint16)(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for tensor in tensors:
        dtype = gguf.GGMLQuantizationType[tensor.dtype]
        writer.add_tensor_info(tensor.name, tensor.shape, None, tensor.nbytes, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    data = path.read_bytes()
    return data + bytes(-len(data) % 32)


@pytest.mark.parametrize("tensors", [TENSORS, TENSORS[:1], []])
@pytest.mark.parametrize("fields", [FIELDS, {"general.architecture": "bert", **SPLIT}])
def test_a_header_is_the_package_s_byte_for_byte(
    fields: dict[str, Any], tensors: list[OutputTensor], tmp_path: Path
) -> None:
    assert header(fields, tensors) == theirs(fields, tensors, tmp_path / "theirs.gguf")
