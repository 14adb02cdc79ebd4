"""The interface of all ways of storing a layer's values: how they are read, what memory that takes, what is checked."""

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
    """What an encoding knows about the layer that it stores: a `Layer` of checkpoint/table.py without its encoding."""

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
    """Where bytes are read from: the objects of a checkpoint, by URI."""

    def read_into(self, uri: str, offset: int, out: np.ndarray) -> None:
        """Fills `out`, uint8, with the bytes of the object from `offset` on."""

    def dataset(self, uri: str) -> Dataset:
        """The V1 or V2 dataset at `uri`."""


@dataclass(frozen=True, slots=True)
class SourceRange:
    """Bytes [start, stop) of the object at `uri`, which are values of `itemsize` bytes each."""

    uri: str
    start: int
    stop: int
    itemsize: int


class Slice(Protocol):
    """Values [start, stop), in C order, of a layer."""

    @property
    def ranges(self) -> Sequence[SourceRange]:
        """The byte ranges that the caller reads, together with those of other slices; empty if `values` does all the
        reading itself."""

    @property
    def decoded_nbytes(self) -> int:
        """Bytes that `values` requests from `allocate`."""

    @property
    def beside_nbytes(self) -> int:
        """Peak memory of `values` besides. The bound on a worker's memory counts the ranges and both numbers."""

    def values(self, found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        """The values: little-endian uint8 [(stop - start) · itemsize].

        found: the bytes of each of `ranges`, uint8. source: for what `values` reads itself. allocate: allocates the
        memory of the result. Raises InvalidCheckpoint, StorageError, CorruptWeights.
        """


class Encoding(ABC):
    """A way of storing values. Its instances are frozen, and hold what differs between layers that are stored this way.

    kind: name in plans. batches_ahead: number of batches of row blocks that are read over a network while another is
    processed: two, so that the requests of one follow those of the other without a pause; one if making the values
    takes much more memory than the bytes read, or requests of its own. may_be_a_copy: whether copies among its layers
    are searched for by content (checkpoint/ties.py); False if the source itself says which layers are tied, or if
    reading a part takes very many requests.
    """

    __slots__ = ()

    kind: ClassVar[str]
    batches_ahead: ClassVar[int] = 2
    may_be_a_copy: ClassVar[bool]

    @property
    @abstractmethod
    def label(self) -> str:
        """Description for people."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Stored tensors that are needed to decode the values, besides the layer's own bytes."""
        return ()

    @abstractmethod
    def slice(self, layer: Stored, start: int, stop: int) -> Slice:
        """Values [start, stop) of `layer`, which has this encoding."""

    def kept_spec(self, _layer: Stored, _source: Source) -> QuantSpec | NotKept | None:
        """How V2 can store the codes of a layer unchanged: a spec with method SOURCE, for which the decoded values are
        bit for bit those of `slice`. NotKept, with the reason, if V2 cannot; None if the source has values, not codes.

        The source is read for what headers do not tell: the order of groups, and whether all zero points are the middle
        of the codes' range.
        """
        return NotKept(f"{self.label} have a form that V2 does not have")

    def kept_slice(self, _layer: Stored, _rows: range, _spec: QuantSpec) -> Slice:
        """Like `slice`, for codes that are kept: the result's `values` are rows in the layout of tensor/kept.py.

        rows: rows of the layer seen as a matrix by the spec's row_dims. spec: what `kept_spec` returned.
        """
        raise NotImplementedError(f"{self.kind} has no codes that are kept")

    def kept_nbytes(self, layer: Stored, _spec: QuantSpec) -> int:
        """Bytes in the source of a layer whose codes are kept: codes, scales and zero points."""
        return layer.nbytes + sum(place.nbytes for place in self.places)

    def byte_range(self, layer: Stored, _start: int, _stop: int) -> ByteRange:
        """Where values [start, stop) are in the object; all of the layer's bytes if they are not a single range."""
        return ByteRange(layer.offset, layer.offset + layer.nbytes)

    def check(self, layer: Stored, sizes: Mapping[str, int]) -> None:
        """Checks, before a plan is made, what has to be true of `layer`. sizes: {URI: bytes} of the source's files.

        Raises InvalidCheckpoint, naming layer and file.
        """
        check_inside(layer, layer.uri, ByteRange(layer.offset, layer.offset + layer.nbytes), sizes)
        for place in self.places:
            check_inside(layer, place.uri, ByteRange(place.offset, place.offset + place.nbytes), sizes)


def check_inside(layer: Stored, uri: str, found: ByteRange, sizes: Mapping[str, int]) -> None:
    """Raises InvalidCheckpoint if bytes that a layer needs are beyond their file."""
    nbytes = sizes.get(uri)
    if found.start < 0 or (nbytes is not None and found.stop > nbytes):
        file = "the file" if nbytes is None else f"the file ({counted(nbytes, 'byte')})"
        message = f"its bytes {found.start} to {found.stop} are outside {file}; fetch it again"
        raise InvalidCheckpoint(message, layer=layer.name, uri=redact(uri))
