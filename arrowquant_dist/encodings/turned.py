"""Integers stored with the layer's rows as columns, as GPTQ and AWQ do: decoded as x = (code - zero) · scale in
float32, rounded once to the layer's dtype; or their codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.config.spec import NotKept, QuantSpec
from arrowquant_dist.encodings.encoding import Source, SourceRange, Stored
from arrowquant_dist.encodings.kept import (
    BY_ACTIVATION,
    are_runs,
    check_kept_scales,
    put_packed,
    source_spec,
    stored_rows,
)
from arrowquant_dist.encodings.rows import values_of
from arrowquant_dist.encodings.turned_layout import TurnedLayout
from arrowquant_dist.encodings.turned_slice import TurnedSlice
from arrowquant_dist.tensor.kept import KeptRows, kept_nbytes


class TurnedInts(TurnedLayout):
    """What GPTQ's and AWQ's formats share."""

    __slots__ = ()

    batches_ahead: ClassVar[int] = 1
    may_be_a_copy: ClassVar[bool] = True

    def slice(self, layer: Stored, start: int, stop: int) -> TurnedSlice:
        return TurnedSlice(layer, start, stop, self)

    def kept_spec(self, layer: Stored, source: Source) -> QuantSpec | NotKept:
        if self.groups is not None and not are_runs(self.groups, self.group, source):
            return BY_ACTIVATION
        symmetric = self._are_middle(layer.shape[0], source)
        return source_spec(layer, self.zero_bits, self.group, symmetric=symmetric)

    def kept_slice(self, layer: Stored, rows: range, spec: QuantSpec) -> KeptTurned:
        return KeptTurned(self.slice(layer, *values_of(layer, rows)), spec)

    def _are_middle(self, outputs: int, source: Source) -> bool:
        """Whether all zero points are the middle of the codes' range. Stops reading at the first that is not."""
        words = self.zeros.shape[1]
        return all(
            (self.zero_points(found.view("<u4").reshape(-1, words), outputs) == self.middle).all()
            for _, found in stored_rows(self.zeros, self.zeros.shape[0], source)
        )


@dataclass(frozen=True, slots=True)
class KeptTurned:
    """Whole rows of codes. made: the slice of their values, which reads the same bytes. Memory: as for that slice."""

    made: TurnedSlice
    spec: QuantSpec

    @property
    def ranges(self) -> list[SourceRange]:
        return self.made.ranges

    @property
    def decoded_nbytes(self) -> int:
        return kept_nbytes(self._matrix, self.spec)

    @property
    def beside_nbytes(self) -> int:
        return self.made.beside_nbytes

    @property
    def _matrix(self) -> tuple[int, int]:
        return len(self.made.rows), self.made.layer.shape[1]

    def values(self, found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        out, made, spec = allocate(self.decoded_nbytes), self.made, self.spec
        kept, encoding, (_, inputs) = KeptRows.of(out, self._matrix, spec), made.encoding, self._matrix
        for tile in made.tiles(made.read(found, source)):
            own = slice(tile.rows.start - made.rows.start, tile.rows.stop - made.rows.start)
            kept.scales[own] = tile.scales
            check_kept_scales(kept.scales[own], spec, made.layer)
            if not spec.symmetric:
                kept.zero_points[own] = tile.zero_points - encoding.middle
            codes = encoding.dense(tile.turned(inputs))
            put_packed(codes, encoding.zero_bits, inputs, kept.codes[own], spec)
        return out
