"""The same checkpoint through the GGUF tools: gguf-py's numpy quantizers, and llama.cpp if it is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.peers import gguf_encoder, installed
from tests.benchmarks.source import data_start, shapes

_CHUNK = 4 << 20  # values that a thread takes at a time
_COLUMNS = 2048

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_job(source: Path, folder: Path, what: str, count: int, threads: int) -> Callable[[], object] | None:
    """A job that reads, quantizes and writes the first `count` values (a multiple of 2048) of `source`; None if gguf is
    not installed."""
    encode = gguf_encoder(what)
    if encode is None:
        return None
    begin = data_start(source)

    def run() -> None:
        def every(k: int) -> None:
            with source.open("rb", buffering=0) as file, (folder / f"{what}-{k}").open("wb") as out:
                for start in range(k * _CHUNK, count, threads * _CHUNK):
                    file.seek(begin + 2 * start)
                    bits = np.empty(min(_CHUNK, count - start), np.uint16)
                    file.readinto(bits.data)
                    out.write(encode(bits.reshape(-1, _COLUMNS)).data)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(every, range(threads)))

    return run


def llama_job(gguf: Path, folder: Path, what: str, threads: int) -> Callable[[], object] | None:
    """A job of llama.cpp's own file-to-file quantizer; None if llama-cpp-python or gguf is not installed."""
    if not (installed("llama_cpp") and installed("gguf")):
        return None
    import llama_cpp

    llama_cpp.llama_log_set(_silent(), None)

    def run() -> None:
        params = llama_cpp.llama_model_quantize_default_params()
        params.nthread, params.ftype = threads, getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{what}")
        out = str(folder / f"{what}.gguf").encode()
        if llama_cpp.llama_model_quantize(str(gguf).encode(), out, params) != 0:
            raise RuntimeError(f"llama.cpp did not quantize {gguf}")

    return run


@cache
def _silent() -> Any:
    """A log callback for llama.cpp that drops its line per tensor. It has to be kept while llama.cpp is used."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


def write_gguf(source: Path, target: Path, params: int) -> None:
    """Writes the checkpoint that `write_checkpoint(source, params)` made as a bfloat16 GGUF file; values stay on
    disk."""
    import gguf

    found = shapes(params)
    vocabulary, width = found["lm_head.weight"]
    inner = found["model.layers.0.mlp.up_proj.weight"][0]
    heads = max(1, width // 64)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(sum("q_proj" in name for name in found))
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(max(1, heads // 8))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    data = np.memmap(source, np.uint8, "r", data_start(source))
    offset = 0
    for name, shape in found.items():
        nbytes = 2 * int(np.prod(shape))
        raw = data[offset : offset + nbytes].reshape(*shape[:-1], 2 * shape[-1])
        writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        offset += nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`"""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if match:
        return f"blk.{match[1]}.{_NAMES[match[2]]}.weight"
    return f"{_NAMES[name.removesuffix('.weight')]}.weight"
