"""What a layer's scales and zero points are, which decides where they can be written. All of them are read."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import BITS
from arrowquant_dist.dataset.dataset import Dataset, Piece
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.export.compressed_tensors.packers import ScaleDtype, scales_are

_READ_AT_ONCE = 8  # layers: a store far away answers so many requests in the time of one
_LARGEST_FLOAT16 = 65504.0


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


def _read(dataset: Dataset, layer: StoredLayer) -> StoredScales:
    symmetric, whole, fits = True, True, True
    held: frozenset[ScaleDtype] = frozenset(("F32", "BF16", "F16"))
    for block in layer.blocks:
        found = dataset.read_scales(Piece(block, 0, block.header.rows))
        scales, zero_points = found.scales, found.zero_points
        held = frozenset(dtype for dtype in held if scales_are(scales, dtype))
        fits = fits and bool((np.abs(scales) <= _LARGEST_FLOAT16).all())
        if zero_points.size:
            half = 1 << (BITS[block.header.quant_type] - 1)
            in_range = (zero_points >= -half) & (zero_points <= half - 1)
            symmetric = False
            whole = whole and bool((in_range & (zero_points == np.rint(zero_points))).all())
    return StoredScales(symmetric, whole, held, fits)
