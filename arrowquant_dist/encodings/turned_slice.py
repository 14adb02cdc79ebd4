"""Values of integers that are stored with the layer's rows as columns.

They are read for whole runs of 32 outputs, which begin at a word for any number of bits, and decoded in tiles of some
outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.column_bytes import column_bytes
from arrowquant_dist.encodings.encoding import Source, SourceRange, Stored
from arrowquant_dist.encodings.place import present
from arrowquant_dist.encodings.rows import OUT_BITS
from arrowquant_dist.encodings.strided import WINDOW_NBYTES
from arrowquant_dist.encodings.turned_layout import RUN, PackedField, TurnedLayout
from arrowquant_dist.errors import InvalidCheckpoint, counted
from arrowquant_dist.tensor.source import as_float32

_TILE = 2 * RUN  # outputs that are decoded at a time
_OF_INPUT_NBYTES = 2  # for each code of a tile: packed in words, and unpacked
_OF_GROUP_NBYTES = 96  # for each scale and zero of a tile while converted to float32: bits, integers, turned
_OF_INDEX_NBYTES = 20  # for each input: its group, and what that is compared with


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Some rows of a layer in their stored form.

    rows: which rows of the layer. runs: the whole runs of outputs that contain `rows`. words, zero_words: uint32, the
    columns of the stored codes and zeros that hold `runs`. scale_bytes: uint8 [groups, bytes of the scales of
    `runs`]."""

    rows: range
    runs: range
    words: np.ndarray
    zero_words: np.ndarray
    scale_bytes: np.ndarray
    encoding: TurnedLayout

    @property
    def _own(self) -> slice:
        return slice(self.rows.start - self.runs.start, self.rows.stop - self.runs.start)

    def turned(self, inputs: int) -> np.ndarray:
        """Codes in the encoding's form, with a row per output: uint8 [rows, bytes of a row]."""
        return self.encoding.turned(self.words, inputs)[self._own]

    @property
    def scales(self) -> np.ndarray:
        """float32 [rows, groups]"""
        dtype = self.encoding.scales.dtype
        turned = np.ascontiguousarray(self.scale_bytes.view(DTYPES[dtype].bits).T[self._own])
        return as_float32(turned.view(np.uint8).reshape(-1), dtype).reshape(len(self.rows), -1)

    @property
    def zero_points(self) -> np.ndarray:
        """float32 [rows, groups]"""
        return self.encoding.zero_points(self.zero_words, len(self.runs))[self._own]


@dataclass(frozen=True, slots=True)
class TurnedSlice:
    """Values [start, stop) of such a layer.

    Memory: the rows' values, their stored codes, zeros and scales, and what is needed to gather and transpose them. If
    the values are of all rows, the stored bytes are contiguous: `ranges` names them, and they are read together with
    those of other slices.
    """

    layer: Stored
    start: int
    stop: int
    encoding: TurnedLayout

    @property
    def rows(self) -> range:
        """The layer's rows that hold the values."""
        inputs = self.layer.shape[1]
        return range(self.start // inputs, -(-self.stop // inputs)) if self.start < self.stop else range(0)

    @property
    def outputs(self) -> range:
        """`rows` and the other outputs of their runs."""
        rows = self.rows
        return range(rows.start // RUN * RUN, min(-(-rows.stop // RUN) * RUN, self.layer.shape[0]))

    @property
    def fields(self) -> tuple[PackedField, PackedField, PackedField]:
        """(codes, zeros, scales)"""
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
        """Size in bytes of all values of `rows`."""
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
        read, groups = self.read(found, source), self._groups(found, source)
        values = out.view(OUT_BITS[self.layer.dtype]).reshape(len(rows), inputs)
        for tile in self.tiles(read):
            self._decode(tile, groups, values[tile.rows.start - rows.start :][: len(tile.rows)])
        itemsize, before = DTYPES[self.layer.dtype].itemsize, rows.start * inputs
        return out[(self.start - before) * itemsize : (self.stop - before) * itemsize]

    def read(self, found: Sequence[np.ndarray], source: Source) -> list[np.ndarray]:
        """The bytes of each field that hold `outputs`: uint8 [stored rows, bytes]."""
        if self._is_whole:
            return [
                taken.reshape(-1, field.row_nbytes)
                for taken, field in zip(found, self.fields, strict=False)  # groups may follow
            ]
        return [column_bytes(field.place, field.columns(self.outputs), source) for field in self.fields]

    def tiles(self, read: Sequence[np.ndarray]) -> Iterator[Tile]:
        """Yields the tiles of `rows`. read: what `read` returned."""
        rows, firsts = self.rows, [field.columns(self.outputs).start for field in self.fields]
        for first in range(rows.start // RUN * RUN, rows.stop, _TILE):
            own = range(max(first, rows.start), min(first + _TILE, rows.stop))
            runs = range(own.start // RUN * RUN, min(-(-own.stop // RUN) * RUN, self.layer.shape[0]))
            codes, zeros, scales = (
                np.ascontiguousarray(bytes_[:, columns.start - start : columns.stop - start])
                for bytes_, columns, start in (
                    (bytes_, field.columns(runs), start)
                    for bytes_, field, start in zip(read, self.fields, firsts, strict=True)
                )
            )
            yield Tile(own, runs, codes.view("<u4"), zeros.view("<u4"), scales, self.encoding)

    def _decode(self, tile: Tile, groups: np.ndarray, out: np.ndarray) -> None:
        """Decodes a tile into `out`: bits [rows of the tile, inputs]."""
        from arrowquant_dist.kernels.sources import decode_rows

        encoding, inputs = self.encoding, out.shape[1]
        decode_rows(
            encoding.codes.kind,
            encoding.codes.bits,
            tile.turned(inputs),
            np.arange(len(tile.rows)),
            encoding.group,
            groups,
            tile.scales,
            np.ascontiguousarray(tile.zero_points),
            np.empty(inputs, np.uint8),
            out,
        )

    def _groups(self, found: Sequence[np.ndarray], source: Source) -> np.ndarray:
        """int32 [inputs]: the group of each input, checked; empty if groups are runs of inputs."""
        place, group = self.encoding.groups, self.encoding.group
        if place is None:
            return np.empty(0, np.int32)
        stored = found[-1] if self._is_whole else np.empty(place.nbytes, np.uint8)
        if not self._is_whole:
            source.read_into(place.uri, place.offset, stored)
        groups = stored.view("<i4")
        count = self.encoding.scales.shape[0]
        if not 0 <= groups.min() <= groups.max() < count:
            message = f"its g_idx refers to groups beyond its {counted(count, 'scale')} per output; download it again"
            raise InvalidCheckpoint(message, layer=self.layer.name, uri=place.uri)
        in_order = np.array_equal(groups, np.arange(groups.size, dtype=np.int32) // group)
        return groups[:0] if in_order else groups
