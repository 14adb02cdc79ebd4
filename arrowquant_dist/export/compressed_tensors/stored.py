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
from arrowquant_dist.export.compressed_tensors.packers import ScaleDtype, rounded_scales, scales_are
from arrowquant_dist.export.short import SHORT_HALVES, are_short

_FAR_AT_ONCE = 8  # layers: a store far away answers so many requests in the time of one
_NEAR_AT_ONCE = 2  # more threads wait for each other
_DTYPES: tuple[ScaleDtype, ...] = ("F32", "BF16", "F16")
_EVERY: frozenset[ScaleDtype] = frozenset(_DTYPES)


@dataclass(frozen=True, slots=True)
class StoredScales:
    """symmetric: there are no zero points. whole: those that there are, are whole numbers that codes could be.
    held_by: the dtypes that have each of the scales. kept_by: those rounded to which no scale moves a value by more
    than half a step, which is what rounding it to a code may have moved it. short_halves: bfloat16 numbers near them
    are float16's too."""

    symmetric: bool
    whole: bool
    held_by: frozenset[ScaleDtype]
    kept_by: frozenset[ScaleDtype] = _EVERY
    short_halves: bool = True


def read_scales(dataset: Dataset, layers: Iterable[StoredLayer]) -> dict[str, StoredScales]:
    """Of layers all of whose blocks are quantized, by name. CorruptWeights where a checksum differs."""
    with ThreadPoolExecutor(_NEAR_AT_ONCE if dataset.store.is_near else _FAR_AT_ONCE) as threads:
        layers = list(layers)
        found = threads.map(lambda layer: _read(dataset, layer), layers)
        return {layer.name: scales for layer, scales in zip(layers, found, strict=True)}


def scales_of(scales: np.ndarray, zero_points: np.ndarray, bits: int) -> StoredScales:
    """Of some rows. scales, zero_points: float32, as QuantizedTensor has them; bits: of the codes."""
    half = 1 << (bits - 1)
    symmetric = not zero_points.size
    in_range = (zero_points >= -half) & (zero_points <= half - 1)
    whole = bool((in_range & (zero_points == np.rint(zero_points))).all())
    if are_short(scales):
        return StoredScales(symmetric, whole, held_by=_EVERY)
    steps = half if symmetric else 2 * half - 1  # the furthest that a code is from its zero point
    held_by = frozenset(dtype for dtype in _DTYPES if scales_are(scales, dtype))
    least, largest = SHORT_HALVES
    sizes = np.abs(scales)
    return StoredScales(
        symmetric=symmetric,
        whole=whole,
        held_by=held_by,
        kept_by=held_by.union(
            d for d in _EVERY - held_by if _is_near(rounded_scales(scales, d), scales, steps)
        ),
        short_halves=bool((((sizes >= least) & (sizes <= largest)) | (sizes == 0)).all()),
    )


def _is_near(rounded: np.ndarray, scales: np.ndarray, steps: int) -> bool:
    """Whether no value moves by more than half a step. steps: the most that one is from its zero point."""
    moved = np.abs(rounded.astype(np.float64) - scales) * steps
    return bool((moved <= np.abs(scales) / 2).all())  # inf is not


def _read(dataset: Dataset, layer: StoredLayer) -> StoredScales:
    found = []
    for block in layer.blocks:
        rows = dataset.read_scales(Piece(block, 0, block.header.rows))
        found.append(scales_of(rows.scales, rows.zero_points, BITS[block.header.quant_type]))
    return StoredScales(
        symmetric=all(one.symmetric for one in found),
        whole=all(one.whole for one in found),
        held_by=_EVERY.intersection(*(one.held_by for one in found)),
        kept_by=_EVERY.intersection(*(one.kept_by for one in found)),
        short_halves=all(one.short_halves for one in found),
    )
