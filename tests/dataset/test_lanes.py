"""Lanes run side by side in threads that are reused, and none of these is left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist.dataset import lanes
from arrowquant_dist.dataset.lanes import LaneThreads
from arrowquant_dist.loader import WeightLoader
from tests.format.encoder import kept_row
from tests.target.targets import make_target
from tests.waiting import until

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Lanes:
    """Threads of lanes that have begun since. before: those that were there, of loaders that other tests hold."""

    before: frozenset[threading.Thread]

    def now(self) -> list[threading.Thread]:
        found = [thread for thread in threading.enumerate() if thread.name.startswith(lanes.LANE_THREAD_NAME)]
        return [thread for thread in found if thread not in self.before]


@pytest.fixture
def begun() -> Lanes:
    return Lanes(frozenset(threading.enumerate()))


@pytest.fixture
def threads(begun: Lanes) -> Iterator[LaneThreads]:
    """Of which none is left afterwards."""
    found = LaneThreads()
    yield found
    found.close()
    assert not begun.now()


def side_by_side(threads: LaneThreads, count: int) -> list[int]:
    """Who ran each of `count` lanes, none of which ends before all have begun."""
    barrier, found = threading.Barrier(count), [0] * count

    def lane(index: int) -> None:
        barrier.wait()
        found[index] = threading.get_ident()

    threads.run([lambda index=index: lane(index) for index in range(count)])  # type: ignore[misc]
    return found


def test_threads_stay_from_one_load_to_the_next(
    threads: LaneThreads, begun: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MOST_THREADS", 3)  # one that is not quite done is not idle yet
    first = side_by_side(threads, 4)
    assert first[0] == threading.get_ident()
    assert len(set(first)) == 4
    for _ in range(10):
        side_by_side(threads, 4)
    assert len(begun.now()) == 3


def test_one_lane_alone_takes_no_thread(threads: LaneThreads, begun: Lanes) -> None:
    assert side_by_side(threads, 1) == [threading.get_ident()]
    threads.run([])
    assert not begun.now()


def test_after_close_lanes_run_in_threads_that_end_with_them(threads: LaneThreads, begun: Lanes) -> None:
    side_by_side(threads, 3)
    threads.close()
    assert not begun.now()
    assert len(set(side_by_side(threads, 3))) == 3
    assert not begun.now()


def test_threads_end_with_what_holds_them(begun: Lanes) -> None:
    threads = LaneThreads()
    side_by_side(threads, 3)
    del threads
    until(lambda: not begun.now())


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_is_raised_when_no_lane_runs_any_more(threads: LaneThreads, failing: int) -> None:
    barrier, done = threading.Barrier(3), [False] * 3

    def lane(index: int) -> None:
        barrier.wait()
        if index == failing:
            raise ValueError(f"lane {index}")
        done[index] = True

    with pytest.raises(ValueError, match=f"lane {failing}"):
        threads.run([lambda index=index: lane(index) for index in range(3)])  # type: ignore[misc]
    assert done == [index != failing for index in range(3)]


def test_who_waits_does_what_no_thread_has_begun(
    threads: LaneThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MOST_THREADS", 1)
    is_begun, go_on, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        is_begun.set()
        go_on.wait()

    other = threading.Thread(target=threads.run, args=([is_begun.wait, slow],), daemon=True)
    other.start()
    is_begun.wait()
    try:
        threads.run([lambda: done.append(0), lambda: done.append(1), lambda: done.append(2)])
    finally:
        go_on.set()
    other.join()
    assert done == [0, 1, 2]


FORKED = """
import os, sys, threading
from arrowquant_dist.dataset.lanes import LaneThreads

threads, barrier = LaneThreads(), threading.Barrier(3)
threads.run([barrier.wait] * 3)
held, forked = threading.Event(), threading.Event()

def hold():
    with threads._lock:
        held.set()
        forked.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
child = os.fork()
if child == 0:
    code = 1
    try:
        barrier = threading.Barrier(3)
        threads.run([barrier.wait] * 3)
        threads.close()
        assert threading.active_count() == 1, threading.enumerate()
        code = 0
    finally:
        os._exit(code)
_, status = os.waitpid(child, 0)
forked.set()
holder.join()
assert os.waitstatus_to_exitcode(status) == 0
threads.run([barrier.wait] * 3)
threads.close()
assert threading.active_count() == 1, threading.enumerate()
print("FINE")
"""


def test_a_forked_child_runs_lanes_whatever_its_parent_is_doing() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.stdout.strip() == "FINE", done.stderr


def test_layers_read_one_after_another_begin_their_threads_once(
    begun: Lanes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(12 * 16, dtype="<f4").reshape(12, 16)
    rows = [
        kept_row(name, values[at : at + 4], "float32", layer_shape=[12, 16], row_start=at)
        for name in ("a", "b")
        for at in (0, 4, 8)
    ]
    path = make_target(tmp_path / "t", [rows], compression="none")
    monkeypatch.setattr(lanes, "MOST_THREADS", 2)
    started: list[str] = []
    plain = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        started.append(thread.name)
        plain(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with WeightLoader(path, workers=3) as loader:
        for _ in range(20):
            for name in ("a", "b"):
                tensor = torch.zeros(12, 16)
                loader.read_into(name, tensor)
                assert np.array_equal(tensor.numpy(), values)
                assert np.array_equal(loader[name].numpy(), values)
        assert len(started) <= 2
    assert not begun.now()
