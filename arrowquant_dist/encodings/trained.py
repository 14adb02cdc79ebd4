"""A layer that is read along with the trained form that replaces it, to be stored and measured (tensor/trained.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate, aligned
from arrowquant_dist.config.spec import QuantSpec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import Encoding, Slice, Source, SourceRange, Stored
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.tensor.trained import stored_nbytes


@dataclass(frozen=True, slots=True)
class TrainedRows(Encoding):
    """own: how the source stores the layer; plans record this one. spec: that of the layer. trained: where the trained
    tensors are, in the order in which a row block has them in memory: scales, zero points if there are any, codes; for
    a layer that is not quantized, its values."""

    own: Encoding
    spec: QuantSpec
    trained: tuple[Place, ...]
    kind: ClassVar[str] = "trained"
    may_be_a_copy: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return self.own.label

    def slice(self, layer: Stored, start: int, stop: int) -> TrainedSlice:
        columns = math.prod(layer.shape[self.spec.row_dims :])
        rows = range(start // columns, stop // columns)
        return TrainedSlice(
            self.own.slice(layer, start, stop),
            tuple(_range(place, rows) for place in self.trained),
            stored_nbytes((len(rows), columns), layer.dtype, self.spec),
            (stop - start) * DTYPES[layer.dtype].itemsize,
        )


def _range(place: Place, rows: range) -> SourceRange:
    """The byte range of some rows. place: [rows, …], or [1, 1] for a scale that all rows share."""
    width = place.nbytes // place.shape[0]
    first = place.offset if place.shape[0] == 1 else place.offset + rows.start * width
    count = 1 if place.shape[0] == 1 else len(rows)
    return SourceRange(place.uri, first, first + count * width, place.itemsize)


@dataclass(frozen=True, slots=True)
class TrainedSlice:
    """own: the source's values of the rows, values_nbytes long. stored: their trained form, stored_nbytes long."""

    own: Slice
    stored: tuple[SourceRange, ...]
    stored_nbytes: int
    values_nbytes: int

    @property
    def ranges(self) -> Sequence[SourceRange]:
        return (*self.own.ranges, *self.stored)

    @property
    def decoded_nbytes(self) -> int:
        return aligned(self.own.decoded_nbytes) + self._nbytes

    @property
    def beside_nbytes(self) -> int:
        return self.own.beside_nbytes

    @property
    def _nbytes(self) -> int:
        return aligned(self.stored_nbytes) + self.values_nbytes

    def values(self, found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        """The trained form and the source's values, in the layout that tensor/trained.py takes."""
        first = len(self.own.ranges)
        values = self.own.values(found[:first], source, allocate)
        out, at = allocate(self._nbytes), 0
        for part in found[first:]:
            out[at : at + part.size] = part
            at += part.size
        out[aligned(self.stored_nbytes) :] = values
        return out
