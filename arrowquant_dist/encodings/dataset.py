"""Layers of a V1 or V2 dataset: decoded from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import (
    Encoding,
    Source,
    SourceRange,
    Stored,
)
from arrowquant_dist.errors import CorruptWeights, IncompleteDataset, InvalidCheckpoint


@contextmanager
def as_a_source() -> Iterator[None]:
    """A damaged dataset, or one with gaps, is what any other damaged source is: InvalidCheckpoint."""
    try:
        yield
    except (CorruptWeights, IncompleteDataset) as error:
        raise InvalidCheckpoint(
            error.message, layer=error.layer, uri=error.uri, byte_range=error.byte_range
        ) from error


@dataclass(frozen=True, slots=True)
class DatasetRows(Encoding):
    """The rows of the dataset at the layer's `uri` that have its name; `offset` is 0, `nbytes` that of the values."""

    kind: ClassVar[str] = "dataset"
    batches_ahead: ClassVar[int] = 1
    may_be_a_copy: ClassVar[bool] = False  # a dataset names its aliases

    @property
    def label(self) -> str:
        return "rows of a dataset"

    def slice(self, layer: Stored, start: int, stop: int) -> DatasetSlice:
        return DatasetSlice(layer, start, stop)

    def check(self, layer: Stored, sizes: Mapping[str, int]) -> None:
        """Nothing: where a dataset's bytes are is its own affair, and it checks each row that it reads."""


DATASET_ROWS = DatasetRows()


@dataclass(frozen=True, slots=True)
class DatasetSlice:
    """Values of a dataset's layer. Memory, besides: a stored row, of which `Checkpoint.largest_row_nbytes` tells."""

    layer: Stored
    start: int
    stop: int
    ranges: ClassVar[Sequence[SourceRange]] = ()
    beside_nbytes: ClassVar[int] = 0

    @property
    def decoded_nbytes(self) -> int:
        return (self.stop - self.start) * DTYPES[self.layer.dtype].itemsize

    def values(self, _found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        with as_a_source():
            try:
                return self._read(source, allocate)
            except CorruptWeights:  # a byte may have been flipped on its way
                return self._read(source, allocate)

    def _read(self, source: Source, allocate: Allocate) -> np.ndarray:
        return source.dataset(self.layer.uri).read_values(self.layer.name, self.start, self.stop, allocate)
