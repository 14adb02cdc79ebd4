"""Properties of a layer's scales and zero points, which decide how they can be written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from arrowquant_dist.config import BITS, QuantizationConfig, recorded_config
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.export.compressed_tensors.packers import (
    ScaleDtype,
    are_whole,
    rounded_scales,
    scales_are,
)
from arrowquant_dist.export.each_layer import reading_each

_DTYPES: tuple[ScaleDtype, ...] = ("F32", "BF16", "F16")
_EVERY: frozenset[ScaleDtype] = frozenset(_DTYPES)
_SHORT_HALVES = 2.0**-17, 65280.0  # between these, each bfloat16 number is also a float16 number


@dataclass(frozen=True, slots=True)
class StoredScales:
    """Properties of stored scales.

    symmetric: there are no zero points. whole: all zero points are whole numbers that codes could be. held_by: the
    dtypes that represent each of the scales exactly. kept_by: the dtypes in which rounded scales move no value by more
    than half a step, which is as much as rounding it to a code may have moved it. short_halves: whether bfloat16
    numbers of the scales' size are also float16 numbers.
    """

    symmetric: bool
    whole: bool
    held_by: frozenset[ScaleDtype]
    kept_by: frozenset[ScaleDtype] = _EVERY
    short_halves: bool = True


def promised_scales(dataset: Dataset, layers: Iterable[StoredLayer]) -> dict[str, StoredScales]:
    """Returns the properties, by name, that the manifest promises for layers quantized with bfloat16 scales and with no
    or whole zero points: reading them would take a twentieth of the dataset before anything is written. Packers check
    each of them nevertheless.

    Other layers, and codes that came with the source, are left out."""
    config = _config_of(dataset)
    if config is None or config.keep_codes or not _always(config, "scale_dtype", value="bfloat16"):
        return {}
    whole = _always(config, "integer_zero_points", value=True)
    symmetric = {layer.name: is_symmetric(layer) for layer in layers}
    return {
        name: StoredScales(found, whole=True, held_by=frozenset(("F32", "BF16")))
        for name, found in symmetric.items()
        if found or (found is not None and whole)
    }


def _config_of(dataset: Dataset) -> QuantizationConfig | None:
    """Returns the config that the dataset was quantized with; None if it is not recorded, or unknown to this
    version."""
    if dataset.manifest is None:
        return None
    try:
        return recorded_config(dataset.manifest.config)
    except InvalidConfig:
        return None


def _always(config: QuantizationConfig, key: str, *, value: object) -> bool:
    """Returns whether every layer has this value, whichever override applies to it."""
    every = [getattr(override, key) for override in config.overrides]
    return getattr(config, key) == value and all(found in (None, value) for found in every)


def is_symmetric(layer: StoredLayer) -> bool | None:
    """Returns whether a layer has no zero points; None if its files do not tell, without an index."""
    ranges = [block.ranges for block in layer.blocks]
    if None in ranges:
        return None
    return not any(found.zero_points.nbytes for found in ranges if found is not None)


def read_scales(dataset: Dataset, layers: Iterable[StoredLayer]) -> dict[str, StoredScales]:
    """Reads the properties, by name, of layers all of whose blocks are quantized. Raises CorruptWeights if a checksum
    differs."""
    with reading_each(dataset.store, layers, partial(_read, dataset)) as found:
        return found()


def scales_of(scales: np.ndarray, zero_points: np.ndarray, bits: int) -> StoredScales:
    """Returns the properties of some rows. scales, zero_points: float32, as in QuantizedTensor. bits: those of the
    codes."""
    half = 1 << (bits - 1)
    symmetric, whole = not zero_points.size, are_whole(zero_points, bits)
    if _are_short(scales):
        return StoredScales(symmetric, whole, held_by=_EVERY)
    steps = half if symmetric else 2 * half - 1  # the largest distance of a code from its zero point
    held_by = frozenset(dtype for dtype in _DTYPES if scales_are(scales, dtype))
    least, largest = _SHORT_HALVES
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


def _are_short(scales: np.ndarray) -> bool:
    """Returns whether all are bfloat16 numbers that are also float16 numbers, as they nearly always are if the config
    asks for bfloat16: this takes three passes over them instead of fifteen."""
    bits = np.ascontiguousarray(scales, "<f4").reshape(-1).view("<u4")
    if not bits.size or int(np.bitwise_or.reduce(bits)) & 0xFFFF:
        return False
    sizes = (bits & np.uint32(0x7FFFFFFF)).view("<f4")
    least, largest = _SHORT_HALVES
    return bool(sizes.min() >= least and sizes.max() <= largest)


def _is_near(rounded: np.ndarray, scales: np.ndarray, steps: int) -> bool:
    """Returns whether no value moves by more than half a step. steps: the largest distance of a code from its zero
    point."""
    moved = np.abs(rounded.astype(np.float64) - scales) * steps
    return bool((moved <= np.abs(scales) / 2).all())  # False for inf


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
