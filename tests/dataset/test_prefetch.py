"""Loads run ahead in order, never beyond the budget, and stop when nobody wants them any more."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.dataset.prefetch import THREAD_NAME, Budget, Lane, Load, Stream, load_now
from arrowquant_dist.errors import CorruptWeights, MemoryBudgetExceeded
from tests.waiting import interrupted, until


def a_load(
    number: int, nbytes: int = 10, result_nbytes: int = 5, work: Lane = lambda: None, lanes: int = 1
) -> Load[int]:
    def begin() -> tuple[Sequence[Lane], Callable[[], int]]:
        return [work] * lanes, lambda: number

    return Load(f"load{number}", nbytes, result_nbytes, begin)


def fail() -> None:
    raise CorruptWeights("broken")


@settings(max_examples=80)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=25),
    workers=st.integers(1, 4),
    limit=st.integers(50, 200),
    lanes=st.integers(0, 3),
)
def test_results_come_in_order_within_the_budget(
    sizes: list[tuple[int, float]], workers: int, limit: int, lanes: int
) -> None:
    budget = Budget(limit)
    loads = [a_load(i, peak, int(peak * kept), lanes=lanes) for i, (peak, kept) in enumerate(sizes)]
    assert list(Stream(loads, budget, workers)) == list(range(len(sizes)))
    assert budget.peak <= limit
    until(lambda: budget.used == 0)


def test_loads_are_begun_ahead_as_far_as_the_budget_goes() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def counted(number: int) -> Load[int]:
        def begin() -> tuple[Sequence[Lane], Callable[[], int]]:
            with lock:
                begun.append(number)
            return [lambda: None], lambda: number

        return Load(f"load{number}", 10, 10, begin)

    stream = iter(Stream([counted(i) for i in range(10)], Budget(40), workers=2))
    assert next(stream) == 0
    until(lambda: begun == [0, 1, 2, 3])
    assert next(stream) == 1  # makes room for one more
    until(lambda: begun == [0, 1, 2, 3, 4])
    stream.close()


def test_loads_are_counted_while_no_thread_can_take_them_away() -> None:
    """Counting goes over the line of those that are made, from which other threads take what they read."""
    budget, workers = Budget(1000), 1
    taken: list[bool] = []

    class Watched(int):
        """A number of bytes; when it is added up, another thread tries whether it could change the line."""

        def __radd__(self, other: int) -> int:
            def look() -> None:
                taken.append(budget.changed.acquire(blocking=False))
                if taken[-1]:
                    budget.changed.release()

            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            return other + int(self)

    loads = [a_load(number, Watched(10)) for number in range(20)]
    assert list(Stream(loads, budget, workers)) == list(range(20))
    assert set(taken) == {False}


def test_an_error_is_raised_in_its_turn_and_gives_all_memory_back() -> None:
    budget = Budget(100)
    loads = [a_load(0), a_load(1), a_load(2, work=fail), a_load(3)]
    stream = iter(Stream(loads, budget, workers=3))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(CorruptWeights):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    until(lambda: budget.used == 0)


def test_a_load_beyond_the_budget_is_refused_in_its_turn() -> None:
    budget = Budget(20)
    stream = iter(Stream([a_load(0), a_load(1, 21), a_load(2)], budget, workers=1))
    assert next(stream) == 0
    with pytest.raises(MemoryBudgetExceeded, match="needs 21 bytes"):
        next(stream)
    until(lambda: budget.used == 0)


def test_no_memory_is_an_error_in_its_turn() -> None:
    def begin() -> tuple[Sequence[Lane], Callable[[], int]]:
        raise MemoryError

    budget = Budget(100)
    stream = iter(Stream([a_load(0), Load("no", 10, 5, begin)], budget, workers=1))
    assert next(stream) == 0
    with pytest.raises(MemoryError):
        next(stream)
    until(lambda: budget.used == 0)


def test_random_access_takes_the_room_of_what_was_read_ahead_and_that_is_read_again() -> None:
    budget = Budget(40)
    stream = iter(Stream([a_load(i, 10, 10) for i in range(6)], budget, workers=2))
    assert next(stream) == 0
    until(lambda: budget.used == 40)
    assert load_now(a_load(99, 40), budget) == 99
    assert list(stream) == [1, 2, 3, 4, 5]
    assert budget.peak <= 40
    until(lambda: budget.used == 0)


def test_random_access_waits_for_what_is_being_read() -> None:
    budget = Budget(10)
    gate, done = threading.Event(), threading.Event()

    def hold() -> None:
        done.set()
        gate.wait()

    first = threading.Thread(target=load_now, args=(a_load(0, 10, work=hold), budget))
    first.start()
    done.wait()
    results: list[int] = []
    second = threading.Thread(target=lambda: results.append(load_now(a_load(1, 10), budget)))
    second.start()
    until(lambda: budget.waiting)
    assert results == []
    gate.set()
    second.join()
    first.join()
    assert results == [1]
    assert budget.used == 0


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_failed_load_gives_its_memory_back(lanes: int) -> None:
    budget = Budget(10)
    with pytest.raises(CorruptWeights):
        load_now(a_load(0, 10, work=fail, lanes=lanes), budget)
    assert budget.used == 0


def test_an_interrupt_while_waiting_ends_the_stream() -> None:
    budget = Budget(100)
    gate = threading.Event()
    begun: list[int] = []

    def work() -> None:
        begun.append(1)
        gate.wait()

    stream = iter(Stream([a_load(i, work=work) for i in range(8)], budget, workers=2))
    with interrupted(lambda: len(begun) == 2), pytest.raises(KeyboardInterrupt):
        next(stream)
    gate.set()
    until(lambda: budget.used == 0)
    until(lambda: not any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()))


class Source:
    """What loads read from."""


def test_what_loads_read_from_goes_with_the_stream_without_a_search_for_cycles() -> None:
    source = Source()
    left = weakref.ref(source)

    def load(number: int, source: Source) -> Load[Source]:
        return Load(f"load{number}", 10, 10, lambda: ([lambda: None, lambda: None], lambda: source))

    stream = Stream([load(i, source) for i in range(20)], Budget(60), workers=2)
    gc.disable()
    try:
        assert all(result is source for result in stream)
        stream.pool.shutdown()
        del stream, source
        assert left() is None
    finally:
        gc.enable()


def test_loads_are_made_as_they_are_needed_in_the_thread_that_iterates() -> None:
    made: list[int] = []

    def coming() -> Iterator[Load[int]]:
        for i in range(1000):
            assert threading.current_thread() is threading.main_thread()
            made.append(i)
            yield a_load(i)

    stream = iter(Stream(coming(), Budget(1000), workers=2))
    assert next(stream) == 0
    assert len(made) < 100
    assert [*stream] == [*range(1, 1000)]


def test_threads_without_work_begin_while_more_loads_are_made() -> None:
    begun = threading.Semaphore(0)

    def loads() -> Iterator[Load[int]]:
        yield a_load(0)
        yield a_load(1, work=begun.release)
        assert begun.acquire(timeout=60)
        yield a_load(2)

    assert list(Stream(loads(), Budget(1000), workers=2)) == [0, 1, 2]


def test_small_loads_behind_a_large_one_are_read_while_it_is_waited_for() -> None:
    done: list[int] = []

    def small(number: int) -> Load[int]:
        return Load(f"load{number}", 10, 10, lambda: ([lambda: done.append(number)], lambda: number))

    first = a_load(0, work=lambda: until(lambda: len(done) == 60))
    assert [*Stream([first, *map(small, range(1, 61))], Budget(1000), workers=2)] == [*range(61)]


def test_large_loads_are_read_ahead_by_their_number() -> None:
    begun: list[int] = []

    def large(number: int) -> Load[int]:
        return Load(
            f"load{number}", 32 << 20, 32 << 20, lambda: ([lambda: begun.append(number)], lambda: number)
        )

    pairs = iter(Stream(map(large, range(60)), Budget(8 << 30), workers=2))
    assert next(pairs) == 0
    until(lambda: len(begun) == 9)
    pairs.close()
    assert len(begun) == 9
