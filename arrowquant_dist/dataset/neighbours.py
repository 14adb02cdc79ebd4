"""Neighbouring blocks of a layer, which are read in one request if each request costs a round trip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.pieces import Piece, gap_between, joined_pieces
from arrowquant_dist.dataset.windows import PathRange, joined, windows_nbytes

JOINED_NBYTES = 8 << 20  # maximum memory for what is read in one request


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Pieces that one lane reads at once. at: their positions among the layer's pieces. places: the ranges to read for
    all of them; empty if the dataset reads them better itself, as for a single piece. nbytes: peak memory."""

    pieces: Sequence[Piece]
    at: range
    places: Sequence[PathRange]
    nbytes: int

    def read(self, dataset: Dataset, work: Callable[[int], None]) -> None:
        """Calls `work`, which asks the dataset for a piece's values, with each position."""
        if not self.places or dataset.is_reading_together:  # the bytes are in memory already
            for index in self.at:
                work(index)
            return
        with dataset.reading_together(self.pieces, self.places):
            for index in self.at:
                work(index)


def each_alone(pieces: Sequence[Piece], costs: Sequence[int]) -> list[Neighbours]:
    """Each piece as a group of its own. costs: peak memory of reading each piece."""
    return [
        Neighbours((piece,), range(i, i + 1), (), cost)
        for i, (piece, cost) in enumerate(zip(pieces, costs, strict=True))
    ]


def neighbours(pieces: Sequence[Piece], beside: Sequence[int], most_nbytes: int) -> list[Neighbours]:
    """Groups of whole blocks of a layer of an indexed dataset, in their order: blocks that follow each other, as many
    as take no more than `most_nbytes` of memory together.

    beside: peak memory of each piece in addition to the bytes read. Gaps between two values are read along if they are
    at most 256 KiB, or 2 KiB if the pieces are not the whole layer.
    """
    gap_nbytes = gap_between(pieces)
    found: list[Neighbours] = []
    start, places, most_beside = 0, joined_pieces(pieces[:1], gap_nbytes), beside[0]
    for index in range(1, len(pieces)):
        own = joined_pieces(pieces[index : index + 1], gap_nbytes)
        longer = joined([(path, place.start, place.stop) for path, place in (*places, *own)], gap_nbytes)
        if windows_nbytes(longer) + max(most_beside, beside[index]) <= most_nbytes:
            places, most_beside = longer, max(most_beside, beside[index])
            continue
        found.append(_of(pieces, range(start, index), places, most_beside))
        start, places, most_beside = index, own, beside[index]
    found.append(_of(pieces, range(start, len(pieces)), places, most_beside))
    return found


def _of(pieces: Sequence[Piece], at: range, places: Sequence[PathRange], beside: int) -> Neighbours:
    return Neighbours(pieces[at.start : at.stop], at, places, windows_nbytes(places) + beside)
