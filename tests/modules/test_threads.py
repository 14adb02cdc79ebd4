"""Rows are split between threads, in this process and in one that was forked from it."""

from __future__ import annotations

import multiprocessing
import threading

import pytest

from arrowquant_dist.modules.threads import split_rows


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 64, 67])
@pytest.mark.parametrize("parts", [1, 2, 3, 16])
def test_every_row_is_done_once_and_bounds_are_whole_steps(rows: int, parts: int) -> None:
    found: list[tuple[int, int]] = []
    split_rows(lambda start, stop: found.append((start, stop)), rows, parts, 4)
    assert [row for start, stop in sorted(found) for row in range(start, stop)] == [*range(rows)]
    assert all(start % 4 == 0 for start, _ in found)


def test_what_a_part_raises_is_raised() -> None:
    def work(start: int, _stop: int) -> None:
        if start:
            raise ValueError(start)

    with pytest.raises(ValueError, match="4"):
        split_rows(work, 8, 2, 4)


def test_parts_that_no_thread_has_begun_are_done_by_the_caller() -> None:
    """All threads are held; the caller waits for none of them."""
    release = threading.Event()
    held = [threading.Thread(target=split_rows, args=(lambda *_: release.wait(), 4 * 65, 65, 4))]
    held[0].start()
    found: list[int] = []
    split_rows(lambda start, _: found.append(start), 16, 4, 4)
    release.set()
    held[0].join()
    assert sorted(found) == [0, 4, 8, 12]


def _fork_and_split(results: multiprocessing.SimpleQueue[list[int]]) -> None:
    found: list[int] = []
    split_rows(lambda start, _: found.append(start), 16, 4, 4)
    results.put(sorted(found))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    split_rows(lambda *_: None, 16, 4, 4)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_fork_and_split, args=(results,))
    child.start()
    assert results.get() == [0, 4, 8, 12]
    child.join()
