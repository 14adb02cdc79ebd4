"""Rows of blocks: what a part of a layer is stored in, and what to read for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arrowquant_dist.dataset.layers import StoredBlock, StoredLayer
from arrowquant_dist.dataset.ranges import (
    COALESCE_NBYTES,
    COALESCE_PARTS_NBYTES,
    extents_of,
    wanted_ranges,
    widened,
)
from arrowquant_dist.dataset.windows import PathRange, joined


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) of a block, counted from the block's first."""

    block: StoredBlock
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its block."""
        return self.rows == self.block.header.rows


def pieces(layer: StoredLayer, start: int, stop: int) -> list[Piece]:
    """What rows [start, stop) of a layer are stored in."""
    return [
        Piece(block, max(start - row.row_start, 0), min(stop - row.row_start, row.rows))
        for block, row in ((block, block.header) for block in layer.blocks)
        if max(start, row.row_start) < min(stop, row.row_stop) or layer.rows == 0
    ]


def joined_pieces(together: Sequence[Piece]) -> list[PathRange]:
    """What to read for these pieces: a request for what lies no more than 256 KiB apart, where all of them are whole
    layers; where some are parts of layers, 2 KiB, since others' parts lie between them, and of many small layers these
    would be more than what is asked for."""
    are_whole = all(piece.block.header.is_whole and piece.is_whole for piece in together)
    return joined(_places(together), COALESCE_NBYTES if are_whole else COALESCE_PARTS_NBYTES)


def _places(together: Sequence[Piece]) -> Iterator[PathRange]:
    for piece in together:
        block = piece.block
        if block.ranges is not None:
            wanted = widened(block.header, piece.start, piece.stop, verify=True)
            for extent, _ in extents_of(wanted_ranges(block.ranges, wanted), COALESCE_PARTS_NBYTES):
                yield block.path, extent
