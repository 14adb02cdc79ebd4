"""Writes checkpoints byte by byte, for content that no library would write."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import Storage

NOT_CAST = "float4_e2m1fn_x2"  # torch can only view bytes as this dtype, not convert to it


def safetensors_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header (a JSON value, or bytes), `data`, and `length` as the claimed length of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[Any], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def read_all(checkpoint: Checkpoint, options: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """{name: raw bytes} of all layers, read together."""
    with SourceReader(Storage(options or {}), checkpoint.files) as reader:
        values = reader.read([(layer, 0, layer.num_params) for layer in checkpoint.layers])
    return {layer.name: value.tobytes() for layer, value in zip(checkpoint.layers, values, strict=True)}


def raw_bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
