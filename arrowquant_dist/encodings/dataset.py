"""Layers of a V1 or V2 dataset, decoded from its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.config.spec import BITS, SOURCE, NotKept, QuantSpec, half_spec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import (
    Encoding,
    Source,
    SourceRange,
    Stored,
)
from arrowquant_dist.errors import CorruptWeights, IncompleteDataset, InvalidCheckpoint
from arrowquant_dist.tensor.kept import KeptRows, kept_nbytes
from arrowquant_dist.tensor.source import matrix_shape

_Read = TypeVar("_Read")


@contextmanager
def as_a_source() -> Iterator[None]:
    """Raises InvalidCheckpoint for a damaged or incomplete dataset, as for any other damaged source."""
    try:
        yield
    except (CorruptWeights, IncompleteDataset) as error:
        raise InvalidCheckpoint(
            error.message, layer=error.layer, uri=error.uri, byte_range=error.byte_range
        ) from error


@dataclass(frozen=True, slots=True)
class DatasetRows(Encoding):
    """The rows, with the layer's name, of the dataset at its `uri`; `offset` is 0, `nbytes` the size of the values."""

    kind: ClassVar[str] = "dataset"
    batches_ahead: ClassVar[int] = 1
    may_be_a_copy: ClassVar[bool] = False  # a dataset names its aliases

    @property
    def label(self) -> str:
        return "rows of a dataset"

    def slice(self, layer: Stored, start: int, stop: int) -> DatasetSlice:
        return DatasetSlice(layer, start, stop)

    def kept_spec(self, layer: Stored, source: Source) -> QuantSpec | NotKept | None:
        """See Encoding.kept_spec. A layer kept in 16 bits by the dataset stays so, with the spec of all such layers."""
        stored = source.dataset(layer.uri).layer(layer.name)
        forms = {(b.header.quant_type, b.header.quant_axis, b.header.group_size) for b in stored.blocks}
        types = {quant_type for quant_type, _, _ in forms}
        if BITS.keys().isdisjoint(types):
            return half_spec(layer.dtype, stored.row_dims) if "fp16" in types else None
        if len(forms) > 1:
            return NotKept("their row blocks are stored in several ways")
        zeros = [block.ranges.zero_points.nbytes for block in stored.blocks if block.ranges is not None]
        if len(zeros) < len(stored.blocks):
            return NotKept("they lie in bare files, which do not say whether they have zero points")
        ((quant_type, quant_axis, group_size),) = forms
        return QuantSpec(
            quant_type=quant_type,
            per_channel=quant_axis == 0 and not group_size,
            group_size=group_size,
            symmetric=not any(zeros),
            method=SOURCE,
            row_dims=stored.row_dims,
        )

    def kept_slice(self, layer: Stored, rows: range, spec: QuantSpec) -> KeptDatasetRows:
        return KeptDatasetRows(layer, rows, spec)

    def kept_nbytes(self, layer: Stored, spec: QuantSpec) -> int:
        """See Encoding.kept_nbytes. The size before compression: only the index knows the compressed size, not the
        plan."""
        return kept_nbytes(matrix_shape(layer.shape, spec.row_dims), spec)

    def check(self, layer: Stored, sizes: Mapping[str, int]) -> None:
        """Checks nothing: the dataset itself knows where its bytes are, and checks each row that it reads."""


DATASET_ROWS = DatasetRows()


@dataclass(frozen=True, slots=True)
class DatasetSlice:
    """Values of a dataset's layer. Memory besides: a stored row, which `Checkpoint.largest_row_nbytes` accounts for."""

    layer: Stored
    start: int
    stop: int
    ranges: ClassVar[Sequence[SourceRange]] = ()
    beside_nbytes: ClassVar[int] = 0

    @property
    def decoded_nbytes(self) -> int:
        return (self.stop - self.start) * DTYPES[self.layer.dtype].itemsize

    def values(self, _found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        return _twice(partial(self._read, source, allocate))

    def _read(self, source: Source, allocate: Allocate) -> np.ndarray:
        return source.dataset(self.layer.uri).read_values(self.layer.name, self.start, self.stop, allocate)


@dataclass(frozen=True, slots=True)
class KeptDatasetRows:
    """Rows of a dataset's layer with their codes unchanged. Memory besides: as for a `DatasetSlice`."""

    layer: Stored
    rows: range
    spec: QuantSpec
    ranges: ClassVar[Sequence[SourceRange]] = ()
    beside_nbytes: ClassVar[int] = 0

    @property
    def decoded_nbytes(self) -> int:
        return kept_nbytes(self._matrix, self.spec)

    @property
    def _matrix(self) -> tuple[int, int]:
        return len(self.rows), matrix_shape(self.layer.shape, self.spec.row_dims)[1]

    def values(self, _found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        out = allocate(self.decoded_nbytes)
        _twice(partial(self._read, source, KeptRows.of(out, self._matrix, self.spec)))
        return out

    def _read(self, source: Source, kept: KeptRows) -> None:
        from arrowquant_dist.dataset.pieces import pieces

        dataset, at = source.dataset(self.layer.uri), 0
        for piece in pieces(dataset.layer(self.layer.name), self.rows.start, self.rows.stop):
            found, own = dataset.read_piece(piece), slice(at, at + piece.rows)
            of_scales = own if self.spec.quant_axis == 0 else slice(None)
            kept.codes[own].reshape(-1)[:] = found.codes
            kept.scales[of_scales].reshape(-1)[:] = found.scales
            if not self.spec.symmetric:
                kept.zero_points[of_scales].reshape(-1)[:] = (
                    found.zero_points if found.zero_points.size else 0
                )
            at += piece.rows


def _twice(read: Callable[[], _Read]) -> _Read:
    """Reads again if the first read finds corrupt weights: a byte may have been flipped on its way."""
    with as_a_source():
        try:
            return read()
        except CorruptWeights:
            return read()
