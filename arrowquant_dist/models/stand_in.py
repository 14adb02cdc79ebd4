"""Writes a model's weight files without weights: safetensors files with the right names, shapes and dtypes, and holes
in place of the values.

sentence-transformers can only open folders with weights. Holes take neither disk space nor memory: the files are
mapped, and nobody reads their values before the real ones are in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from arrowquant_dist.checkpoint.safetensors_header import StoredTensor, header_of
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.storage.temporary import written_here


def write_holes(path: Path, layers: Mapping[str, StoredLayer]) -> None:
    """Writes a safetensors file to `path` with a tensor for each of `layers`: all zeros, without using disk space."""
    tensors = [_stored(name, layer) for name, layer in layers.items()]
    header = header_of(tensors, {"format": "pt"})
    with written_here(path), path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor.nbytes for tensor in tensors))


def _stored(name: str, layer: StoredLayer) -> StoredTensor:
    dtype = DTYPES[layer.dtype]
    return StoredTensor(name, dtype.safetensors, layer.shape, math.prod(layer.shape) * dtype.itemsize)
