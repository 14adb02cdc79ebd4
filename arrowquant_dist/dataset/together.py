"""Joins small loads into one with a single request, task and wait: for each alone these cost more than its values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.pieces import gap_between, joined_pieces
from arrowquant_dist.dataset.prefetch import Lane, Load
from arrowquant_dist.dataset.windows import windows_nbytes
from arrowquant_dist.errors import ArrowQuantError

T = TypeVar("T")

TOGETHER_NBYTES = 4 << 20  # peak memory of loads that are joined: a few milliseconds of work
MOST_LOADS = 64


def batched(loads: Iterable[Load[T]], dataset: Dataset, share_nbytes: int) -> Iterator[Load[Iterator[T]]]:
    """Yields the same loads in their order, joined into loads of no more than TOGETHER_NBYTES.

    The result of a joined load yields each load's result in its turn, and raises an error of a load in its turn as
    well. Loads that do not say what they decode are not joined. share_nbytes: memory that one joined load may take.
    """
    batch: list[Load[T]] = []
    nbytes = 0
    most_nbytes = min(TOGETHER_NBYTES, share_nbytes)
    for load in loads:
        goes_alone = not load.decodes or load.peak_nbytes > most_nbytes
        if batch and (goes_alone or nbytes + load.peak_nbytes > most_nbytes or len(batch) == MOST_LOADS):
            yield _together(batch, dataset)
            batch, nbytes = [], 0
        if goes_alone:
            yield _block_at_once(load, dataset, share_nbytes) or alone(load)
        else:
            batch.append(load)
            nbytes += load.peak_nbytes
    if batch:
        yield _together(batch, dataset)


def _block_at_once(load: Load[T], dataset: Dataset, share_nbytes: int) -> Load[Iterator[T]] | None:
    """A batch of a single whole uncompressed block, which is read by one call and decoded by one call; None for other
    loads, or if its stored bytes do not fit as well. When such blocks were read chunk by chunk, their thread waited
    between chunks for Python's lock, held by threads that read small layers: MiniLM's embedding took 29 ms, and takes
    23 ms this way.
    """
    if len(load.decodes) != 1:
        return None
    (piece,) = load.decodes
    is_copied = piece.block.header.quant_type == "none"  # read directly to its destination, step by step
    if is_copied or not piece.is_whole or not dataset.reads_in_steps(piece.block):
        return None
    found = _together([load], dataset)
    return found if found.peak_nbytes <= share_nbytes else None


def alone(load: Load[T]) -> Load[Iterator[T]]:
    """A batch of one."""
    return load.then(lambda result: iter((result,)))


def _together(loads: list[Load[T]], dataset: Dataset) -> Load[Iterator[T]]:
    pieces = [piece for load in loads for piece in load.decodes]
    result_nbytes = sum(load.result_nbytes for load in loads)
    # decompressed values, until all are decoded
    working = sum(load.peak_nbytes - load.result_nbytes for load in loads)
    places = joined_pieces(pieces, gap_between(pieces))
    peak_nbytes = result_nbytes + working + windows_nbytes(places)

    def begin() -> tuple[Sequence[Lane], Callable[[], Iterator[T]]]:
        begun = [load.begin() for load in loads]
        failed: dict[int, ArrowQuantError] = {}

        def read_all() -> None:
            with dataset.reading_together(pieces, places):
                for turn, (lanes, _) in enumerate(begun):
                    try:
                        for lane in lanes:
                            lane()
                    except ArrowQuantError as error:  # raised in the turn of the load that it is about
                        failed[turn] = error
                        return

        return [read_all], lambda: _in_turn([result for _, result in begun], failed)

    return Load(loads[0].name, peak_nbytes, result_nbytes, begin)


def _in_turn(results: list[Callable[[], T]], failed: dict[int, Any]) -> Iterator[T]:
    """Yields each result without keeping a reference to it."""
    at = 0
    while results:
        if at in failed:
            raise failed[at]
        yield results.pop(0)()
        at += 1
