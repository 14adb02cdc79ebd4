"""Checkpoints with a few wide layers in each way of storing weights, written block by block: quickly, and with little
memory. Values are finite, and zstd cannot compress them much."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig

_PIECE_NBYTES = 1 << 20
_ITEMSIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4, "I64": 8, "U8": 1}
_CAREFUL = {"U8": (118, 122), "F8_E4M3": (0, 0x7E)}  # e8m0 powers near 1, and codes other than NaN
_MIB = 1 << 20

Header = Mapping[str, tuple[str, tuple[int, ...]]]  # {name: (safetensors dtype, shape)}


def plain(folder: Path, nbytes: int, dtype: str = "BF16", layers: int = 1, columns: int = 4096) -> str:
    """`layers` layers with `nbytes` bytes together."""
    rows = nbytes // layers // columns // _ITEMSIZES[dtype]
    return _save(folder, {f"layers.{i}.weight": (dtype, (rows, columns)) for i in range(layers)})


def float8(folder: Path, nbytes: int) -> str:
    """float8 with scales for blocks of 128 × 128. nbytes: bytes of the codes, each of which is a bfloat16 value."""
    rows = nbytes // 4096
    blocks = (-(-rows // 128), 32)
    tensors = {"w.weight": ("F8_E4M3", (rows, 4096)), "w.weight_scale_inv": ("F32", blocks)}
    scales = np.random.default_rng(2).uniform(0.001, 0.02, blocks).astype("<f4").tobytes()
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return _save(folder, tensors, config, {"w.weight_scale_inv": scales})


def packed(folder: Path, nbytes: int) -> str:
    """compressed-tensors' 4 bits in groups of 32, with zero points. nbytes: bytes of the words, with 8 bfloat16 values
    each."""
    rows = nbytes // 2048
    tensors = {
        "w.weight_packed": ("I32", (rows, 512)),
        "w.weight_scale": ("BF16", (rows, 128)),
        "w.weight_zero_point": ("I32", (rows // 8, 128)),
        "w.weight_shape": ("I64", (2,)),
    }
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    group = {"targets": ["Linear"], "weights": weights}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
    }
    return _save(folder, tensors, quantization, {"w.weight_shape": np.array([rows, 4096], "<i8").tobytes()})


def gptq(folder: Path, nbytes: int) -> str:
    """GPTQ's 4 bits in groups of 128, whose words have the layer's rows as columns. nbytes: bytes of the words, with 8
    float16 values each."""
    outputs = nbytes // 2048
    tensors = {
        "w.qweight": ("I32", (512, outputs)),
        "w.qzeros": ("I32", (32, outputs // 8)),
        "w.scales": ("F16", (32, outputs)),
    }
    return _save(folder, tensors, {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False})


def experts(folder: Path, nbytes: int) -> str:
    """gpt-oss' MXFP4, whose layers are transposed. nbytes: bytes of the blocks, each of which has 2 bfloat16 values."""
    matrices = max(nbytes // (4 * _MIB), 1)  # with 2048 × 4096 values each
    blocks = {"e.w_blocks": ("U8", (matrices, 2048, 128, 16)), "e.w_scales": ("U8", (matrices, 2048, 128))}
    return _save(folder, blocks)


def nvfp4(folder: Path, nbytes: int) -> str:
    """ModelOpt's NVFP4, once with two values of a row in a byte and once with two of a column. nbytes: bytes of all
    codes."""
    rows = nbytes // 2 // 2048
    tensors = {
        "w.weight": ("U8", (rows, 2048)),
        "w.weight_scale": ("F8_E4M3", (rows, 256)),
        "w.weight_scale_2": ("F32", ()),
        "e.up": ("U8", (1, rows, 2048)),
        "e.up_weight_scale": ("F8_E4M3", (1, rows // 8, 2048)),
        "e.up_weight_scale_2": ("F32", (1,)),
    }
    shared = {name: np.float32(0.01).tobytes() for name in tensors if name.endswith("_2")}
    return _save(folder, tensors, {"quant_method": "modelopt"}, shared)


def strided(folder: Path, nbytes: int) -> str:
    """A transposed float32 view in a PyTorch file."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    stored = torch.randn(4096, nbytes // 4 // 4096, generator=generator) * 0.02
    torch.save({"w.weight": stored.t()}, folder / "pytorch_model.bin")
    return str(folder)


def dataset(folder: Path, nbytes: int, run: RunConfig, config: QuantizationConfig) -> str:
    """A dataset with the codes of a bfloat16 layer of `nbytes`, in rows that are the blocks of `run`."""
    source = plain(folder / "source", nbytes)
    ArrowQuantizer(config, run.replace(engine="inline", workers=1)).quantize(source, str(folder / "dataset"))
    return str(folder / "dataset")


def _save(
    folder: Path,
    tensors: Header,
    quantization: Mapping[str, object] | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> str:
    """contents: bytes of the tensors whose values matter."""
    folder.mkdir(parents=True)
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        stop = at + math.prod(shape) * _ITEMSIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header).encode()
    pieces = {dtype: _piece(dtype) for dtype in {dtype for dtype, _ in tensors.values()}}
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (name, (dtype, shape)) in enumerate(tensors.items()):
            if contents and name in contents:
                file.write(contents[name])
                continue
            turn = 64 * number % _PIECE_NBYTES  # otherwise layers would be equal, and stored once
            piece = pieces[dtype][turn:] + pieces[dtype][:turn]
            nbytes = math.prod(shape) * _ITEMSIZES[dtype]
            for start in range(0, nbytes, _PIECE_NBYTES):
                file.write(piece[: nbytes - start])
    if quantization is not None:
        (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return str(folder)


def _piece(dtype: str) -> bytes:
    rng = np.random.default_rng(1)
    if dtype in ("F64", "F32", "F16"):
        count = _PIECE_NBYTES // _ITEMSIZES[dtype]
        return (rng.standard_normal(count) * 0.02).astype(f"<f{_ITEMSIZES[dtype]}").tobytes()
    if dtype == "BF16":
        bits = (rng.standard_normal(_PIECE_NBYTES // 2, np.float32) * 0.02).view(np.uint32) >> 16
        return bits.astype("<u2").tobytes()
    low, high = _CAREFUL.get(dtype, (0, 256))
    return rng.integers(low, high, _PIECE_NBYTES, np.uint8).tobytes()
