"""Memory of processes over time: measured at each shard, with a few lines however large the cluster."""

from __future__ import annotations

import pytest

from arrowquant_dist.reduce.memory import MOST_POINTS, MOST_SERIES
from tests.reduce.attempts import attempt, cluster, timeline_of


def test_threads_share_the_line_of_their_process() -> None:
    receipts = [
        attempt(0, 0.0, 1.0, thread=0, resident_nbytes=100, peak_memory_nbytes=150),
        attempt(1, 0.0, 2.0, thread=1, resident_nbytes=120, peak_memory_nbytes=160),
        attempt(2, 1.0, 2.0, thread=0, resident_nbytes=110, peak_memory_nbytes=160),
        attempt(3, 1.0, 1.5, "m/7", resident_nbytes=50, peak_memory_nbytes=60),
    ]
    other, process = sorted(timeline_of(receipts).memory, key=lambda series: series.name)
    assert (process.name, process.processes, process.workers) == ("n/1", 1, 2)
    assert process.seconds == (1.0, 2.0, 3.0)
    assert process.resident_nbytes == (100, 120, 110)
    assert process.peak_nbytes == (150, 160, 160)
    assert (other.name, other.workers, other.resident_nbytes) == ("m/7", 1, (50,))


def test_of_more_processes_than_lines_each_node_has_its_largest() -> None:
    receipts = [
        attempt(i, 0.1 * i, 1.0, f"{'ab'[i % 2]}/{i}", resident_nbytes=1000 - i, peak_memory_nbytes=2000 + i)
        for i in range(MOST_SERIES + 2)
    ]
    a, b = timeline_of(receipts).memory
    assert (a.name, a.processes, b.name, b.processes) == ("a", 4, "b", 4)
    assert {*a.resident_nbytes} == {1000}  # of the first process, which nobody measured again
    assert a.peak_nbytes == (2000, 2002, 2004, 2006)


def test_of_more_nodes_than_lines_there_is_the_largest_of_all() -> None:
    [series] = timeline_of(cluster(workers=64, shards=5000)).memory
    assert (series.name, series.processes) == ("", 64)
    assert len(series.seconds) <= MOST_POINTS
    assert {*series.resident_nbytes} == {86 << 20}


def test_many_shards_of_one_process_are_the_largest_of_each_step() -> None:
    receipts = [attempt(i, 0.001 * i, 0.001, resident_nbytes=i % 1000) for i in range(5000)]
    [series] = timeline_of(receipts, wall_seconds=5.001).memory
    assert len(series.seconds) <= MOST_POINTS
    assert max(filter(None, series.resident_nbytes)) == 999
    assert series.seconds[-1] == pytest.approx(5.0)


def test_a_system_that_does_not_say_what_is_resident_leaves_it_open() -> None:
    [series] = timeline_of([attempt(0, 0.0, 1.0, resident_nbytes=None, peak_memory_nbytes=7)]).memory
    assert (series.resident_nbytes, series.peak_nbytes) == ((None,), (7,))
