"""What a layer's scales and zero points are, which decides where they can be written. All of them are read."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import BITS
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.export.compressed_tensors.packers import ScaleDtype, scales_are

_READ_AT_ONCE = 8  # layers: a store far away answers so many requests in the time of one
_LARGEST_FLOAT16 = 65504.0
_DTYPES: tuple[ScaleDtype, ...] = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class StoredScales:
    """symmetric: there are no zero points. whole: those that there are, are whole numbers that codes could be.
    held_by: the dtypes that have each of the scales. fits_float16: none of them is beyond its range."""

    symmetric: bool
    whole: bool
    held_by: frozenset[ScaleDtype]
    fits_float16: bool


def read_scales(dataset: Dataset, layers: Iterable[StoredLayer]) -> dict[str, StoredScales]:
    """Of layers all of whose blocks are quantized, by name. CorruptWeights where a checksum differs."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        layers = list(layers)
        found = threads.map(lambda layer: _read(dataset, layer), layers)
        return {layer.name: scales for layer, scales in zip(layers, found, strict=True)}


def scales_of(scales: np.ndarray, zero_points: np.ndarray, bits: int) -> StoredScales:
    """Of some rows. scales, zero_points: float32, as QuantizedTensor has them; bits: of the codes."""
    half = 1 << (bits - 1)
    in_range = (zero_points >= -half) & (zero_points <= half - 1)
    return StoredScales(
        symmetric=not zero_points.size,
        whole=bool((in_range & (zero_points == np.rint(zero_points))).all()),
        held_by=frozenset(dtype for dtype in _DTYPES if scales_are(scales, dtype)),
        fits_float16=bool((np.abs(scales) <= _LARGEST_FLOAT16).all()),
    )


def _read(dataset: Dataset, layer: StoredLayer) -> StoredScales:
    found = []
    for block in layer.blocks:
        rows = dataset.read_scales(Piece(block, 0, block.header.rows))
        found.append(scales_of(rows.scales, rows.zero_points, BITS[block.header.quant_type]))
    return StoredScales(
        symmetric=all(one.symmetric for one in found),
        whole=all(one.whole for one in found),
        held_by=frozenset(_DTYPES).intersection(*(one.held_by for one in found)),
        fits_float16=all(one.fits_float16 for one in found),
    )
