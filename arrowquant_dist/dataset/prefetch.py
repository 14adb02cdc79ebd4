"""Runs loads in order, several at once, within a memory budget that is shared with random access."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.dataset.lanes import LaneThreads
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.errors import InvalidConfig, MemoryBudgetExceeded

T = TypeVar("T")
U = TypeVar("U")
Lane = Callable[[], None]

THREAD_NAME = "arrowquant-load"
# Once there is a load for each worker, more are read ahead until they take this much: others are then read while a slow
# one is waited for, but a borrowed stream of large layers reuses its memory instead of taking new pages for all.
_AHEAD_NBYTES = 256 << 20
_MOST_AHEAD_PER_WORKER = 32


@dataclass(frozen=True, slots=True, eq=False)
class Load(Generic[T]):
    """Something to read, within known memory.

    name: what is read, for errors. peak_nbytes: memory from `begin` until the last lane is done. result_nbytes: memory
    from then on, at most peak_nbytes. begin: allocates the memory, and returns lanes that fill it and a function that
    returns the result. Lanes run in parallel, in any thread. decodes: the stored pieces that are read, if their stored
    bytes are not part of the result and are not needed after the lanes: neighbours may then be read together.
    """

    name: str
    peak_nbytes: int
    result_nbytes: int
    begin: Callable[[], tuple[Sequence[Lane], Callable[[], T]]]
    decodes: tuple[Piece, ...] = ()

    def then(self, change: Callable[[T], U], extra_nbytes: int = 0) -> Load[U]:
        """The same load with its result passed through `change`, which takes `extra_nbytes` more memory."""

        def begin() -> tuple[Sequence[Lane], Callable[[], U]]:
            lanes, result = self.begin()
            return lanes, lambda: change(result())

        peak, result_nbytes = self.peak_nbytes + extra_nbytes, self.result_nbytes + extra_nbytes
        return Load(self.name, peak, result_nbytes, begin, self.decodes)


class Budget:
    """Counts bytes in flight: all memory from a load's beginning until its result belongs to the caller. Thread-safe.

    `used` never exceeds `limit_nbytes`; `peak` is its maximum so far. A caller that needs room when there is none makes
    the streams give up what they have read ahead, and waits for what is being read at the moment.
    """

    def __init__(self, limit_nbytes: int) -> None:
        self.limit_nbytes = limit_nbytes
        self.used = 0
        self.peak = 0
        self.changed = threading.Condition()  # its lock, which is reentrant, also guards the streams' state
        self.streams: list[Stream[Any]] = []
        self.threads = LaneThreads()  # for loads that a caller waits for
        self.waiting = 0  # number of callers that wait for room; meanwhile nothing is read ahead

    def try_take(self, nbytes: int) -> bool:
        with self.changed:
            if self.used + nbytes > self.limit_nbytes:
                return False
            self.used += nbytes
            self.peak = max(self.peak, self.used)
            return True

    def take(self, nbytes: int, name: str) -> None:
        """Takes the bytes, waiting until there is room. Raises MemoryBudgetExceeded if there can never be. name: name
        of the layer, for the error."""
        if nbytes > self.limit_nbytes:
            message = (
                f"needs {rounded_size(nbytes)} of memory at once, but the budget has "
                f"{rounded_size(self.limit_nbytes)}; raise memory_budget, or read by rows: "
                "loader.read(name, rows=slice(start, stop))"
            )
            raise MemoryBudgetExceeded(message, layer=name)
        with self.changed:
            self.waiting += 1
            try:
                while not self.try_take(nbytes):
                    if not any(stream.give_up_one() for stream in [*self.streams]):
                        self.changed.wait()
            finally:
                self.waiting -= 1

    def give(self, nbytes: int) -> None:
        with self.changed:
            self.used -= nbytes
            self.changed.notify_all()


def load_now(load: Load[T], budget: Budget) -> T:
    """Runs one load and returns its result, which belongs to the caller and no longer counts in the budget."""
    budget.take(load.peak_nbytes, load.name)
    try:
        lanes, result = load.begin()
        budget.threads.run(lanes)
        return result()
    finally:
        budget.give(load.peak_nbytes)


class Stream(Generic[T]):
    """Iterates over the results of `loads` in their order, read ahead by `workers` threads as far as the budget allows.

    A result counts in the budget until the next one is handed over, because a loop's variable holds it that long, or
    until somebody needs the room. A failed load raises when its turn comes, and ends the stream. A child that was
    forked in the meantime has no threads, and their locks may stay locked for ever: there it raises InvalidConfig.
    """

    def __init__(self, loads: Iterable[Load[T]], budget: Budget, workers: int) -> None:
        self._pid = os.getpid()
        self._coming = iter(loads)
        self._todo: deque[Load[T]] = deque()
        self._ahead: deque[_Running[T]] = deque()
        self._held_nbytes = 0
        self._is_reading_ahead = False
        self._is_closed = False
        self._budget = budget
        self._workers = workers
        self.pool = ThreadPoolExecutor(workers, THREAD_NAME)

    def __iter__(self) -> Generator[T]:
        with self._budget.changed:
            self._budget.streams.append(self)
        try:
            while (running := self._take_next()) is not None:
                yield self._hand_over(running)
        finally:
            self.close()

    def close(self) -> None:
        """Drops what was read ahead. Threads end after the block they are reading, without being waited for, since this
        may run in one of them (the garbage collector may finish an iterator in any thread)."""
        if self._pid != os.getpid():
            return
        with self._budget.changed:
            self._is_closed = True
            self._coming = iter(())
            while self.give_up_one():
                pass
            if self in self._budget.streams:
                self._budget.streams.remove(self)
            self._budget.changed.notify_all()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def check_usable(self) -> None:
        """Raises InvalidConfig if this is a child that was forked in the meantime, or if the stream is closed."""
        if self._pid != os.getpid():
            message = "this iteration was started before the process forked; start a new one in this process"
            raise InvalidConfig(message)
        if self._is_closed:
            raise InvalidConfig("the loader was closed while it was read; open a new one")

    def give_up_one(self) -> bool:
        """Drops the load that is furthest ahead, which is then read again in its turn, or else stops counting the last
        result.

        Returns False if there is nothing to give up. Called with the budget's lock held.
        """
        if self._ahead:
            running = self._ahead.pop()
            self._todo.appendleft(running.load)
            running.drop()
        elif self._held_nbytes:
            nbytes, self._held_nbytes = self._held_nbytes, 0
            self._budget.give(nbytes)
        else:
            return False
        return True

    def read_ahead(self) -> None:
        """Begins as many loads as the budget has room for. Called when a load has begun or finished."""
        with self._budget.changed:
            if self._is_closed or self._budget.waiting or self._is_reading_ahead:
                return
            # A load that finishes at once calls this again, before it has been appended.
            self._is_reading_ahead = True
            while (
                self._todo
                and not self._are_enough([running.load for running in self._ahead])
                and self._budget.try_take(self._todo[0].peak_nbytes)
            ):
                self._ahead.append(_Running(self._todo.popleft(), self, self._budget))
            self._is_reading_ahead = False

    def _take_next(self) -> _Running[T] | None:
        self.check_usable()
        if not self._todo:
            self._draw_one()
        with self._budget.changed:
            ahead = self._pop_ahead()
            self.check_usable()
            if ahead is not None:
                running = ahead
            elif self._todo:
                load = self._todo.popleft()
                if not self._budget.try_take(load.peak_nbytes):
                    self.give_up_one()  # nothing is read ahead, so this gives up the caller's last result
                    self._budget.take(load.peak_nbytes, load.name)
                running = _Running(load, self, self._budget)
            else:
                return None
        self._draw()  # while that one is read
        self.read_ahead()
        return running

    def _draw(self) -> None:
        """Makes the loads that may be read ahead, in the thread that iterates. Threads with nothing to read begin with
        them in the meantime."""
        while self._wants_more() and self._draw_one():
            if len(self._ahead) < self._workers:
                self.read_ahead()

    def _wants_more(self) -> bool:
        with self._budget.changed:  # threads of the pool may remove loads at the same time
            return not self._are_enough(self._todo)

    def _draw_one(self) -> bool:
        load = next(self._coming, None)
        if load is None:
            return False
        with self._budget.changed:
            self._todo.append(load)
        return True

    def _are_enough(self, loads: Collection[Load[T]]) -> bool:
        """Whether these loads are enough to have made, or to read ahead."""
        count = len(loads)
        if count <= self._workers:
            return False
        are_many = count >= _MOST_AHEAD_PER_WORKER * self._workers
        return are_many or sum(load.peak_nbytes for load in loads) >= _AHEAD_NBYTES

    def _pop_ahead(self) -> _Running[T] | None:
        """The next of the loads that are read ahead; None if there is none. Called with the budget's lock held."""
        return self._ahead.popleft() if self._ahead else None

    def _hand_over(self, running: _Running[T]) -> T:
        try:
            result = running.result()
        except BaseException:
            running.drop()
            raise
        with self._budget.changed:
            self._budget.give(self._held_nbytes)
            self._held_nbytes = running.load.result_nbytes
        self.read_ahead()
        return result


class ArrivalStream(Stream[T]):
    """Like Stream, but yields results in the order in which they are finished, so that a slow one does not hold up the
    others that are read ahead."""

    def _take_next(self) -> _Running[T] | None:
        self._draw()  # the first of the loads may be a slow one
        return super()._take_next()

    def _pop_ahead(self) -> _Running[T] | None:
        self.read_ahead()
        while self._ahead and not self._is_closed:
            for running in self._ahead:
                if running.is_finished:
                    self._ahead.remove(running)
                    return running
            self._budget.changed.wait()
        return None


class _Running(Generic[T]):
    """A load whose lanes are in the pool, and whose memory has been taken from the budget."""

    def __init__(self, load: Load[T], stream: Stream[T], budget: Budget) -> None:
        self.load, self._stream, self._budget = load, stream, budget
        self._is_dropped = False
        self._failure: MemoryError | None = None
        self._results: list[Callable[[], T]] = []  # at most one, which holds the memory
        lanes: Sequence[Lane] = ()
        try:
            lanes, result = load.begin()
            self._results.append(result)
        except MemoryError as error:  # raised in the load's turn: this may run in a thread of the pool
            self._failure = error
        self._unfinished = len(lanes)
        if not lanes:
            budget.give(load.peak_nbytes - load.result_nbytes)
        self._lanes: dict[int, Lane] = dict(enumerate(lanes))
        self._futures = [stream.pool.submit(self._run, index) for index in range(len(lanes))]
        for future in self._futures:
            future.add_done_callback(self._lane_done)

    @property
    def is_finished(self) -> bool:
        return self._unfinished == 0

    def result(self) -> T:
        """Waits for the lanes and returns the result. If lanes failed, raises what the first of them raised."""
        if self._failure is not None:
            raise self._failure
        for future in self._futures:
            future.result()
        self._futures = []  # their callbacks refer to this object: breaks the cycle
        return self._results.pop()()  # the memory now belongs to the caller

    def drop(self) -> None:
        """Gives the memory back as soon as no lane uses it."""
        with self._budget.changed:
            if self._is_dropped:
                return
            self._is_dropped = True
            if self._unfinished == 0:
                self._budget.give(self.load.result_nbytes)
        self._results.clear()
        futures, self._futures = self._futures, []
        for index, future in enumerate(futures):
            if future.cancel():  # the pool keeps the task in its queue for a while, but not its memory
                del self._lanes[index]

    def _run(self, index: int) -> None:
        self._lanes.pop(index)()

    def _lane_done(self, _: Future[None]) -> None:
        with self._budget.changed:
            self._unfinished -= 1
            if self._unfinished:
                return
            kept = 0 if self._is_dropped else self.load.result_nbytes
            self._budget.give(self.load.peak_nbytes - kept)
        self._stream.read_ahead()
