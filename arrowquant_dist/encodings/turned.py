"""Integers whose stored words have the layer's rows as their columns, as GPTQ and AWQ store them: x = (code - zero) ·
scale in float32, rounded once to the layer's dtype.

The layer [outputs, inputs] is stored as words [… inputs, … outputs], zeros [groups, … outputs] and scales [groups,
outputs]: an output is some bits of each row of all three. They are read for whole runs of 32 outputs, which begin with
a word whatever the bits, and decoded in tiles of some outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.column_bytes import column_bytes
from arrowquant_dist.encodings.encoding import Encoding, Source, SourceRange, Stored
from arrowquant_dist.encodings.place import Place, present
from arrowquant_dist.encodings.rows import OUT_BITS, Codes
from arrowquant_dist.encodings.strided import WINDOW_NBYTES
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.tensor.source import as_float32

RUN = 32  # outputs whose fields fill whole words
_WORD_NBYTES = 4
_TILE = 2 * RUN  # outputs that are decoded at a time
_OF_INPUT_NBYTES = 2  # of each code of a tile, on its way: in words, and by itself
_OF_GROUP_NBYTES = 96  # of each scale and zero of a tile, on their way to float32: bits, integers, turned
_OF_INDEX_NBYTES = 20  # of each input: its group, and what that is compared with


class TurnedInts(Encoding):
    """What the formats share. Each says how its words and zeros are laid out."""

    __slots__ = ()

    batches_ahead: ClassVar[int] = 1
    may_be_a_copy: ClassVar[bool] = True

    group: int  # inputs that share a scale
    scales: Place
    zeros: Place

    @property
    def groups(self) -> Place | None:
        """Of int32 [inputs]: the group of each input. None where groups are runs of inputs."""
        return None

    @property
    def places(self) -> tuple[Place, ...]:
        return present(self.scales, self.zeros, self.groups)

    @property
    @abstractmethod
    def zero_bits(self) -> int:
        """Of an output in each row of `zeros`."""

    @property
    @abstractmethod
    def codes(self) -> Codes:
        """What `turned` gives."""

    @abstractmethod
    def words(self, layer: Stored) -> PackedField:
        """The stored codes of `layer`."""

    @abstractmethod
    def turned(self, words: np.ndarray, inputs: int) -> np.ndarray:
        """words: uint32, the columns of a run of outputs. Returns codes: uint8 [outputs, bytes of a row]."""

    @abstractmethod
    def zero_points(self, words: np.ndarray, outputs: int) -> np.ndarray:
        """words: uint32 [groups, words of a run of outputs]. Returns float32 [outputs, groups], to take from codes."""

    def slice(self, layer: Stored, start: int, stop: int) -> TurnedSlice:
        return TurnedSlice(layer, start, stop, self)


@dataclass(frozen=True, slots=True)
class PackedField:
    """A stored matrix in whose rows each output has `bits` bits."""

    place: Place
    bits: int

    @property
    def row_nbytes(self) -> int:
        return self.place.shape[1] * self.place.itemsize

    def columns(self, outputs: range) -> range:
        """The bytes of a row that hold `outputs`, which begin with a run; whole words, as far as the row goes."""
        words = -(-outputs.stop * self.bits // (8 * _WORD_NBYTES))
        return range(outputs.start * self.bits // 8, min(words * _WORD_NBYTES, self.row_nbytes))


@dataclass(frozen=True, slots=True)
class TurnedSlice:
    """Values [start, stop) of such a layer.

    Memory: the rows' values, codes, zeros and scales as they are stored, and what gathers and turns them. All of it is
    `ranges` where the values are of all rows: bytes end to end, which come with those of other slices.
    """

    layer: Stored
    start: int
    stop: int
    encoding: TurnedInts

    @property
    def rows(self) -> range:
        """The layer's rows that hold the values."""
        inputs = self.layer.shape[1]
        return range(self.start // inputs, -(-self.stop // inputs)) if self.start < self.stop else range(0)

    @property
    def outputs(self) -> range:
        """`rows`, and what else is in their runs."""
        rows = self.rows
        return range(rows.start // RUN * RUN, min(-(-rows.stop // RUN) * RUN, self.layer.shape[0]))

    @property
    def fields(self) -> tuple[PackedField, PackedField, PackedField]:
        """Codes, zeros and scales."""
        encoding = self.encoding
        zeros, scales = PackedField(encoding.zeros, encoding.zero_bits), encoding.scales
        return encoding.words(self.layer), zeros, PackedField(scales, 8 * scales.itemsize)

    @property
    def ranges(self) -> list[SourceRange]:
        if not self._is_whole:
            return []
        places = [*(field.place for field in self.fields), *present(self.encoding.groups)]
        return [SourceRange(p.uri, p.offset, p.offset + p.nbytes, p.itemsize) for p in places]

    @property
    def decoded_nbytes(self) -> int:
        """Of all values of `rows`."""
        return len(self.rows) * self.layer.shape[1] * DTYPES[self.layer.dtype].itemsize

    @property
    def beside_nbytes(self) -> int:
        if not self.rows:
            return 0
        inputs, groups = self.layer.shape[1], self.encoding.scales.shape[0]
        tile = _TILE * (_OF_INPUT_NBYTES * inputs + _OF_GROUP_NBYTES * groups) + _OF_INDEX_NBYTES * inputs
        if self._is_whole:
            return tile
        outputs = self.outputs
        gathered = sum(field.place.shape[0] * len(field.columns(outputs)) for field in self.fields)
        return tile + gathered + WINDOW_NBYTES

    @property
    def _is_whole(self) -> bool:
        return len(self.rows) == self.layer.shape[0]

    def values(self, found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        out, rows, inputs = allocate(self.decoded_nbytes), self.rows, self.layer.shape[1]
        if not rows:
            return out
        codes, zeros, scales = self._read(found, source)
        groups = self._groups(found, source)
        values = out.view(OUT_BITS[self.layer.dtype]).reshape(len(rows), inputs)
        for first in range(rows.start // RUN * RUN, rows.stop, _TILE):
            tile = range(max(first, rows.start), min(first + _TILE, rows.stop))
            self._decode(tile, (codes, zeros, scales), groups, values[tile.start - rows.start :][: len(tile)])
        itemsize, before = DTYPES[self.layer.dtype].itemsize, rows.start * inputs
        return out[(self.start - before) * itemsize : (self.stop - before) * itemsize]

    def _read(self, found: Sequence[np.ndarray], source: Source) -> list[np.ndarray]:
        """uint8 [rows, bytes] of each field: what holds `outputs`."""
        if self._is_whole:
            return [
                taken.reshape(-1, field.row_nbytes)
                for taken, field in zip(found, self.fields, strict=False)  # groups may follow
            ]
        return [column_bytes(field.place, field.columns(self.outputs), source) for field in self.fields]

    def _decode(
        self,
        tile: range,
        read: tuple[np.ndarray, np.ndarray, np.ndarray],
        groups: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """Some rows of the layer, of one tile → bits [rows, inputs]. read: as `_read` gives it."""
        from arrowquant_dist.kernels.sources import decode_rows

        encoding, inputs = self.encoding, out.shape[1]
        runs = range(tile.start // RUN * RUN, min(-(-tile.stop // RUN) * RUN, self.layer.shape[0]))
        codes, zeros, scales = (
            np.ascontiguousarray(bytes_[:, columns.start - first : columns.stop - first])
            for bytes_, columns, first in (
                (bytes_, field.columns(runs), field.columns(self.outputs).start)
                for bytes_, field in zip(read, self.fields, strict=True)
            )
        )
        own = slice(tile.start - runs.start, tile.stop - runs.start)
        dtype = encoding.scales.dtype
        turned = np.ascontiguousarray(scales.view(DTYPES[dtype].bits).T[own])
        decode_rows(
            encoding.codes.kind,
            encoding.codes.bits,
            encoding.turned(codes.view("<u4"), inputs)[own],
            np.arange(len(tile)),
            encoding.group,
            groups,
            as_float32(turned.view(np.uint8).reshape(-1), dtype).reshape(len(tile), -1),
            np.ascontiguousarray(encoding.zero_points(zeros.view("<u4"), len(runs))[own]),
            np.empty(inputs, np.uint8),
            out,
        )

    def _groups(self, found: Sequence[np.ndarray], source: Source) -> np.ndarray:
        """int32 [inputs], the group of each, checked; [0] where groups are runs of inputs."""
        place, group = self.encoding.groups, self.encoding.group
        if place is None:
            return np.empty(0, np.int32)
        stored = found[-1] if self._is_whole else np.empty(place.nbytes, np.uint8)
        if not self._is_whole:
            source.read_into(place.uri, place.offset, stored)
        groups = stored.view("<i4")
        count = self.encoding.scales.shape[0]
        if not 0 <= groups.min() <= groups.max() < count:
            message = f"its g_idx has groups beyond its {count} scales an output; download it again"
            raise InvalidCheckpoint(message, layer=self.layer.name, uri=place.uri)
        in_order = np.array_equal(groups, np.arange(groups.size, dtype=np.int32) // group)
        return groups[:0] if in_order else groups


def fields_of(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Fields of `bits` bits, dense from the low bits up: words: uint32 [rows, words] → int32 [rows, count]."""
    stream = np.unpackbits(words.view(np.uint8), axis=1, count=count * bits, bitorder="little")
    powers = 1 << np.arange(bits, dtype=np.int32)
    fields: np.ndarray = stream.reshape(len(words), count, bits) @ powers
    return fields
