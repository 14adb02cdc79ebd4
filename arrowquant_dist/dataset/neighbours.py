"""Blocks of one layer that lie side by side, read at once where each request costs a round trip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.pieces import Piece, gap_between, joined_pieces
from arrowquant_dist.dataset.windows import PathRange, joined, windows_nbytes

JOINED_NBYTES = 8 << 20  # what one request has at most, unless it is told otherwise


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Pieces that one lane reads at once. at: their positions among the layer's. places: what to read for all of them;
    none where the dataset knows better how to read it, as of one piece alone. nbytes: memory at the peak."""

    pieces: Sequence[Piece]
    at: range
    places: Sequence[PathRange]
    nbytes: int

    def read(self, dataset: Dataset, work: Callable[[int], None]) -> None:
        """Calls `work` with each position, which asks the dataset for that piece's values."""
        if not self.places or dataset.is_reading_together:  # then they are there already
            for index in self.at:
                work(index)
            return
        with dataset.reading_together(self.pieces, self.places):
            for index in self.at:
                work(index)


def each_alone(pieces: Sequence[Piece], costs: Sequence[int]) -> list[Neighbours]:
    """costs: memory that reading each takes at its peak."""
    return [
        Neighbours((piece,), range(i, i + 1), (), cost)
        for i, (piece, cost) in enumerate(zip(pieces, costs, strict=True))
    ]


def neighbours(pieces: Sequence[Piece], beside: Sequence[int], most_nbytes: int) -> list[Neighbours]:
    """Whole blocks of a layer of an indexed dataset, in its order: together are those that follow each other and take
    no more than `most_nbytes` so.

    beside: memory that each takes at its peak, beside what is read of it. Between two values up to 256 KiB are read for
    nothing where the pieces are all of the layer, else up to 2 KiB.
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
