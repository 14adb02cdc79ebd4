"""Writes a checkpoint to measure with: Llama-like shapes, random bfloat16, the same bytes every time, in bounded
memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

_CHUNK = 4 << 20  # values that are made at a time
_SEED = 0
_SPREAD = np.float32(0.02)


def shapes(params: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes with about `params` values (at least one layer): TinyLlama's widths, or an eighth of them for
    small checkpoints."""
    width, vocabulary = (2048, 32000) if params >= 200_000_000 else (256, 1000)
    inner, narrow = width * 11 // 512 * 128, width // 8  # multiples of 128: some peers need whole groups
    block = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (narrow, width),
        "self_attn.v_proj": (narrow, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    per_block = sum(int(np.prod(shape)) for shape in block.values())
    count = max(1, round((params - 2 * vocabulary * width) / per_block))
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for k in range(count):
        found.update({f"model.layers.{k}.{name}.weight": shape for name, shape in block.items()})
    return {**found, "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def write_checkpoint(path: Path, params: int) -> int:
    """Writes one safetensors file. Returns how many values it holds."""
    header, offset = {}, 0
    for name, shape in shapes(params).items():
        stop = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(_SEED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset // 2, _CHUNK):
            file.write(bfloat16_bits(random, min(_CHUNK, offset // 2 - start)).data)
    return offset // 2


def bfloat16_bits(random: np.random.Generator, count: int) -> np.ndarray:
    """uint16 [count]: normal values of standard deviation 0.02, rounded half to even."""
    bits = (random.standard_normal(count, np.float32) * _SPREAD).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def data_start(path: Path) -> int:
    """Offset of the values in a safetensors file."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")
