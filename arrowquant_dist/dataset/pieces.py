"""Pieces, which are rows of blocks: where a part of a layer is stored, and what to read for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arrowquant_dist.dataset.layers import StoredBlock, StoredLayer
from arrowquant_dist.dataset.ranges import (
    COALESCE_NBYTES,
    COALESCE_PARTS_NBYTES,
    wanted_ranges,
    widened,
)
from arrowquant_dist.dataset.windows import PathRange, joined
from arrowquant_dist.format.record import StoredRange


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) of a block, counted from the block's first row."""

    block: StoredBlock
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether the piece is its whole block."""
        return self.rows == self.block.rows


def pieces(layer: StoredLayer, start: int, stop: int) -> list[Piece]:
    """The pieces in which rows [start, stop) of a layer are stored."""
    is_empty = stop <= start and layer.rows == 0
    found = []
    for block in layer.blocks:
        before = block.header.row_start
        first, last = max(start - before, 0), min(stop - before, block.rows)
        if first < last or is_empty:
            found.append(Piece(block, first, last))
    return found


def gap_between(together: Sequence[Piece]) -> int:
    """The largest gap between two values of these pieces that is read along: 256 KiB if they are whole layers, each in
    one block or several; 2 KiB if some are parts of layers, since parts that others read lie in between, which for many
    small layers would be more than what is asked for."""
    missing: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for piece in together:
        if not piece.is_whole:
            return COALESCE_PARTS_NBYTES
        row = piece.block.header
        if piece.block.is_whole or (row.layer_name, row.row_start) in seen:
            continue
        seen.add((row.layer_name, row.row_start))
        rows = missing.get(row.layer_name, math.prod(row.layer_shape[: row.row_dims]))
        missing[row.layer_name] = rows - piece.rows
    return COALESCE_PARTS_NBYTES if any(missing.values()) else COALESCE_NBYTES


def joined_pieces(together: Sequence[Piece], gap_nbytes: int) -> list[PathRange]:
    """The ranges to read for these pieces, where values that are at most `gap_nbytes` apart are in one range."""
    places = [
        (piece.block.path, value.offset, value.offset + value.stored_nbytes)
        for piece in together
        for value in _values_of(piece)
        if value.stored_nbytes
    ]
    return joined(places, gap_nbytes)


def _values_of(piece: Piece) -> Iterable[StoredRange]:
    """The ranges of all values that are needed to read and verify the piece."""
    block, ranges = piece.block, piece.block.ranges
    if ranges is None:
        return ()
    if piece.is_whole:
        return ranges
    return wanted_ranges(ranges, widened(block.header, piece.start, piece.stop, verify=True))
