"""What every way of storing a layer's values answers: how they are read, what that takes, and what has to be true."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.config.spec import NotKept, QuantSpec
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.errors import InvalidCheckpoint, counted
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.storage.uris import redact

if TYPE_CHECKING:
    from arrowquant_dist.dataset.dataset import Dataset


class Stored(Protocol):
    """What an encoding is told of the layer that it stores: a `Layer` of checkpoint/table.py, all but its encoding."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def uri(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def source_nbytes(self) -> int: ...


class Source(Protocol):
    """What is read from: the objects of a checkpoint, by URI."""

    def read_into(self, uri: str, offset: int, out: np.ndarray) -> None:
        """The bytes of the object from `offset` on fill `out`, uint8."""

    def dataset(self, uri: str) -> Dataset:
        """The V1 or V2 dataset at `uri`."""


@dataclass(frozen=True, slots=True)
class SourceRange:
    """Bytes [start, stop) of the object at `uri`: values of `itemsize` bytes."""

    uri: str
    start: int
    stop: int
    itemsize: int


class Slice(Protocol):
    """Values [start, stop), in C order, of a layer."""

    @property
    def ranges(self) -> Sequence[SourceRange]:
        """What is to be read for it, together with the ranges of other slices; none where `values` reads by itself."""

    @property
    def decoded_nbytes(self) -> int:
        """What `values` asks `allocate` for."""

    @property
    def beside_nbytes(self) -> int:
        """What `values` holds at its peak besides: of memory, a worker's bound counts all three."""

    def values(self, found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        """The values: little-endian uint8 [(stop - start) · itemsize].

        found: uint8, the bytes of each range. Raises InvalidCheckpoint, StorageError, CorruptWeights.
        """


class Encoding(ABC):
    """A way of storing values. Its instances are frozen and hold what is not the same for all layers stored so.

    kind: its name in plans. batches_ahead: of row blocks, that are read over a network while one is worked on: two, so
    that the requests of one follow those of the other without a pause; one where making the values takes much more than
    what is read, or requests of its own. may_be_a_copy: whether copies of its layers are looked for by content
    (checkpoint/ties.py): not where the source itself says what is tied, or where a part takes very many requests.
    """

    __slots__ = ()

    kind: ClassVar[str]
    batches_ahead: ClassVar[int] = 2
    may_be_a_copy: ClassVar[bool]

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is, for people."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Stored tensors that the values follow from, besides the layer's own bytes."""
        return ()

    @abstractmethod
    def slice(self, layer: Stored, start: int, stop: int) -> Slice:
        """Values [start, stop) of `layer`, which is stored so."""

    def kept_spec(self, _layer: Stored, _source: Source) -> QuantSpec | NotKept | None:
        """How V2 has the codes of a layer as they are: a spec of the method SOURCE, whose decoded values are bit for
        bit those of `slice`. None where the source has values and no codes.

        The source is for what no header tells, the order of groups and whether zero points are all in the middle.
        """
        return NotKept(f"{self.label} are of no form that V2 has")

    def kept_slice(self, _layer: Stored, _rows: range, _spec: QuantSpec) -> Slice:
        """As `slice`, of codes that are kept: its `values` are rows as tensor/kept.py lays them out.

        Rows are those of the layer seen as the spec's row_dims says; the spec is what `kept_spec` gave.
        """
        raise NotImplementedError(f"{self.kind} has no codes that are kept")

    def kept_nbytes(self, layer: Stored, _spec: QuantSpec) -> int:
        """Bytes that the source stores of codes that are kept: all of the layer's, its scales and zero points."""
        return layer.nbytes + sum(place.nbytes for place in self.places)

    def byte_range(self, layer: Stored, _start: int, _stop: int) -> ByteRange:
        """Where values [start, stop) are in the object; the layer's bytes, where they are no range of their own."""
        return ByteRange(layer.offset, layer.offset + layer.nbytes)

    def check(self, layer: Stored, sizes: Mapping[str, int]) -> None:
        """What has to be true of `layer` before a plan is made. sizes: {URI: bytes} of the source's files.

        Raises InvalidCheckpoint, which names layer and file.
        """
        check_inside(layer, layer.uri, ByteRange(layer.offset, layer.offset + layer.nbytes), sizes)
        for place in self.places:
            check_inside(layer, place.uri, ByteRange(place.offset, place.offset + place.nbytes), sizes)


def check_inside(layer: Stored, uri: str, found: ByteRange, sizes: Mapping[str, int]) -> None:
    """InvalidCheckpoint where bytes that a layer needs are not in their file."""
    nbytes = sizes.get(uri)
    if found.start < 0 or (nbytes is not None and found.stop > nbytes):
        file = "the file" if nbytes is None else f"the file ({counted(nbytes, 'byte')})"
        message = f"its bytes {found.start} to {found.stop} are outside {file}; fetch it again"
        raise InvalidCheckpoint(message, layer=layer.name, uri=redact(uri))
