"""How layers are stored, as far as GGUF's blocks depend on it: codes, groups, and the effect of fp16 on the scales.

For this, all scales are read before anything is written: 1 to 20 percent of a dataset's bytes, many layers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from arrowquant_dist.config import BITS
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredBlock, StoredLayer
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.export.each_layer import reading_each
from arrowquant_dist.export.gguf.scales import Fp16, fate_of


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """quant_type: type of the codes, or of values that are kept. group_size: values per scale; 0 for a row, or all of
    the layer. is_symmetric: without zero points."""

    quant_type: str
    group_size: int = 0
    is_symmetric: bool = True


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """schemes: those of a layer's blocks, mostly a single one. fp16: what becomes of its values with fp16 scales."""

    schemes: frozenset[StoredScheme]
    fp16: Fp16 = Fp16.HOLDS

    @property
    def are_codes(self) -> bool:
        return any(scheme.quant_type in BITS for scheme in self.schemes)


def stored_codes(
    dataset: Dataset, layers: Iterable[StoredLayer]
) -> AbstractContextManager[Callable[[], dict[str, StoredCodes]]]:
    """Reads layers as `reading_each` does. Raises CorruptWeights if scales are not what was written."""
    return reading_each(dataset.store, layers, partial(_of_layer, dataset))


def _of_layer(dataset: Dataset, layer: StoredLayer) -> StoredCodes:
    found = [_of_block(dataset, block) for block in layer.blocks]
    return StoredCodes(
        frozenset(scheme for scheme, _ in found), max((fate for _, fate in found), default=Fp16.HOLDS)
    )


def _of_block(dataset: Dataset, block: StoredBlock) -> tuple[StoredScheme, Fp16]:
    row = block.header
    if row.quant_type not in BITS:
        return StoredScheme(row.quant_type), Fp16.HOLDS
    rows = dataset.read_scales(Piece(block, 0, row.rows))
    group_size = row.group_size if row.quant_axis == 0 else 0
    scheme = StoredScheme(row.quant_type, group_size, not rows.zero_points.size)
    return scheme, fate_of(rows.scales, rows.zero_points, BITS[row.quant_type])
