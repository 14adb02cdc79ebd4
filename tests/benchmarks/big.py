"""Checkpoints of the sizes that the project is for: Llama's shapes, bfloat16, in sharded safetensors with an index."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

SHARD_NBYTES = 5 << 30  # as the writers of the Hugging Face hub do
_POOL_NBYTES = 256 << 20
_CHUNK_NBYTES = 64 << 20

Tensors = list[tuple[str, tuple[int, ...]]]


def llama(hidden: int, inner: int, layers: int, vocabulary: int) -> Tensors:
    """Names and shapes of transformers' LlamaForCausalLM with untied embeddings and without grouped queries."""
    tensors: Tensors = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for number in range(layers):
        block = f"model.layers.{number}"
        tensors += [(f"{block}.self_attn.{name}_proj.weight", (hidden, hidden)) for name in "qkvo"]
        tensors += [(f"{block}.mlp.{name}_proj.weight", (inner, hidden)) for name in ("gate", "up")]
        tensors += [(f"{block}.mlp.down_proj.weight", (hidden, inner))]
        tensors += [
            (f"{block}.{name}.weight", (hidden,)) for name in ("input_layernorm", "post_attention_layernorm")
        ]
    return [*tensors, ("model.norm.weight", (hidden,)), ("lm_head.weight", (vocabulary, hidden))]


LLAMA_7B = llama(4096, 11008, 32, 32000)
LLAMA_1B = llama(2048, 5632, 20, 32000)
ONE_LAYER_OF_8_GB: Tensors = [("model.embed_tokens.weight", (1 << 20, 4096)), ("model.norm.weight", (4096,))]
LLAMA_3B = llama(3200, 8640, 26, 32000)
MODELS = {"3B": LLAMA_3B, "7B": LLAMA_7B, "1B": LLAMA_1B, "8GB-layer": ONE_LAYER_OF_8_GB}


def write_checkpoint(folder: Path, tensors: Tensors, shard_nbytes: int = SHARD_NBYTES) -> int:
    """Writes Gaussian weights for the tensors, into as many files as needed and an index. Returns their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = list(_grouped(tensors, shard_nbytes))
    weight_map: dict[str, str] = {}
    for number, group in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write_file(folder / file, group)
        weight_map |= {name: file for name, _ in group}
    total = sum(map(_nbytes, tensors))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _grouped(tensors: Tensors, limit: int) -> Iterator[Tensors]:
    group: Tensors = []
    for tensor in tensors:
        if group and sum(map(_nbytes, group)) + _nbytes(tensor) > limit:
            yield group
            group = []
        group.append(tensor)
    yield group


def _nbytes(tensor: tuple[str, tuple[int, ...]]) -> int:
    return 2 * int(np.prod(tensor[1], dtype=np.int64))


def _write_file(path: Path, tensors: Tensors) -> None:
    header, stop = {}, 0
    for name, shape in tensors:
        start, stop = stop, stop + _nbytes((name, shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = memoryview(_gaussian_bits())
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, tensor in enumerate(tensors):
            _write_values(file, pool, number * 4096, _nbytes(tensor))


def _write_values(file: BinaryIO, pool: memoryview, start: int, nbytes: int) -> None:
    """Writes values from the pool, from a different place for each tensor, so that no two are equal."""
    while nbytes:
        start %= len(pool)
        piece = pool[start : start + min(nbytes, _CHUNK_NBYTES)]
        file.write(piece)
        nbytes -= len(piece)
        start += len(piece)


def _gaussian_bits() -> bytes:
    """bfloat16 values from a normal distribution with standard deviation 0.02."""
    values = np.random.default_rng(7).standard_normal(_POOL_NBYTES // 2, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
