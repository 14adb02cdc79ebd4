"""The last run over time, from receipts: within the run whatever clocks say, and bounded however much there is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.reduce import ReportFigures
from arrowquant_dist.reduce.timeline import AT_WORK_STEPS, MOST_BARS, MOST_LANES, Timeline
from arrowquant_dist.target.receipt import Receipt
from tests.reduce.attempts import BOUND, attempt, cluster, timeline_of

TIMES = st.floats(-1e6, 1e6)
ATTEMPTS = st.lists(
    st.builds(
        attempt,
        st.just(0),
        TIMES,
        st.floats(0, 1e5),
        st.sampled_from(["a/1", "a/2", "b/1"]),
        thread=st.integers(0, 1),
    ),
    max_size=20,
).map(lambda receipts: [replace(receipt, shard=i) for i, receipt in enumerate(receipts)])


def test_a_worker_has_a_lane_and_a_shard_a_bar_at_its_time() -> None:
    receipts = [
        attempt(0, 1.0, 2.0, thread=0),
        attempt(1, 1.5, 4.0, thread=1),
        attempt(2, 3.5, 1.0, thread=0),
        attempt(3, 0.5, 1.0, "m/1"),
    ]
    timeline = timeline_of(receipts)
    assert [(lane.worker, lane.node, lane.thread) for lane in timeline.lanes] == [
        ("m/1", "m", 0),
        ("n/1", "n", 0),
        ("n/1", "n", 1),
    ]
    lane = timeline.lanes[1]
    assert (lane.first_shard, lane.bar_shards) == ((0, 2), (1, 1))
    assert (lane.start_seconds, lane.stop_seconds) == ((1.0, 3.5), (3.0, 4.5))
    assert lane.bar_seconds == (2.0, 1.0)
    assert lane.phase_seconds["quantize"] == (1.2, 0.6)
    assert (lane.shards, lane.busy_seconds) == (2, 3.0)
    assert (timeline.seconds, timeline.workers, timeline.nodes, timeline.shards) == (10.0, 3, 2, 4)
    assert timeline.worker_memory_nbytes == BOUND


def test_what_an_earlier_run_made_hours_ago_is_not_drawn() -> None:
    timeline = timeline_of([attempt(0, -7200, 5.0), attempt(1, 1.0, 2.0)], resumed=(0,))
    assert [lane.first_shard for lane in timeline.lanes] == [(1,)]
    assert timeline.seconds == 10.0
    assert (timeline.shards, timeline.moved_nodes, timeline.cut_shards) == (1, 0, 0)
    nothing = timeline_of([attempt(0, -7200, 5.0)], resumed=(0,))
    assert (nothing.lanes, nothing.memory, nothing.workers) == ((), (), 0)


@pytest.mark.parametrize("off", [10_800.0, -10_800.0])
def test_a_node_whose_clock_is_hours_off_is_moved_into_the_run_and_others_stay(off: float) -> None:
    receipts = [
        attempt(0, 1.0, 2.0, "right/1"),
        attempt(1, 2.0 + off, 3.0, "wrong/1"),
        attempt(2, 6.0 + off, 1.0, "wrong/1"),
    ]
    timeline = timeline_of(receipts)
    right, wrong = sorted(timeline.lanes, key=lambda lane: lane.node)
    assert right.start_seconds == (1.0,)
    first, second = wrong.start_seconds
    assert second - first == pytest.approx(4.0)
    assert first >= 0
    assert wrong.stop_seconds[-1] <= 10.0
    assert timeline.moved_nodes == 1
    assert timeline.moved_seconds == pytest.approx(10_800, abs=10)


def test_a_shard_that_another_driver_began_before_this_run_begins_with_it() -> None:
    timeline = timeline_of([attempt(0, -3.0, 5.0), attempt(1, 2.0, 2.0)])
    assert timeline.lanes[0].start_seconds == (0.0, 2.0)
    assert timeline.lanes[0].stop_seconds == (2.0, 4.0)
    assert timeline.lanes[0].bar_seconds == (5.0, 2.0)
    assert (timeline.cut_shards, timeline.moved_nodes) == (1, 0)


@given(ATTEMPTS, st.floats(0, 1e5))
@settings(max_examples=150, deadline=None)
def test_whatever_clocks_say_all_bars_are_within_the_run(
    receipts: list[Receipt], wall_seconds: float
) -> None:
    timeline = timeline_of(receipts, wall_seconds)
    assert timeline.seconds > 0
    for lane in timeline.lanes:
        assert [*lane.start_seconds] == sorted(lane.start_seconds)
        for start, stop in zip(lane.start_seconds, lane.stop_seconds, strict=True):
            assert 0 <= start <= stop <= timeline.seconds
    for series in timeline.memory:
        assert [*series.seconds] == sorted(series.seconds)
        assert all(0 <= at <= timeline.seconds for at in series.seconds)
    assert sum(lane.shards for lane in timeline.lanes) == len(receipts)
    assert Timeline.from_dict(json.loads(json.dumps(timeline.to_dict(), allow_nan=False))) == timeline


def test_of_many_workers_those_with_most_and_least_work_are_shown_and_all_are_counted() -> None:
    receipts = [attempt(i, 0.5, 0.1 * (i + 1), f"node-{i:02d}/1") for i in range(40)]
    timeline = timeline_of(receipts)
    assert [lane.first_shard[0] for lane in timeline.lanes] == [*range(8), *range(32, 40)]
    assert (timeline.workers, timeline.nodes) == (40, 40)
    assert len(timeline.at_work) == AT_WORK_STEPS
    at_work = sum(timeline.at_work) * timeline.seconds / AT_WORK_STEPS
    assert at_work == pytest.approx(sum(receipt.wall_seconds for receipt in receipts), rel=0.01)


def test_ten_thousand_shards_of_many_workers_are_as_few_bars_as_a_picture_has_room_for() -> None:
    timeline = timeline_of(cluster(workers=40, shards=10_000))
    assert len(timeline.lanes) == MOST_LANES
    bars = sum(len(lane.bar_shards) for lane in timeline.lanes)
    assert MOST_BARS / 3 < bars <= MOST_BARS + MOST_LANES
    for lane in timeline.lanes:
        assert sum(lane.bar_shards) == lane.shards
        assert sum(lane.bar_seconds) == pytest.approx(lane.busy_seconds, abs=0.1)
    assert len(json.dumps(timeline.to_dict())) < 60_000


def change(timeline: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {**timeline, **changes}


@pytest.mark.parametrize(
    "broken",
    [
        {},
        3,
        lambda values: change(values, seconds=0),
        lambda values: change(values, seconds=5e-324),
        lambda values: change(values, seconds="long"),
        lambda values: change(values, lanes=[change(values["lanes"][0], start_seconds=[])]),
        lambda values: change(values, lanes=[change(values["lanes"][0], phase_seconds={"read": []})]),
        lambda values: change(values, lanes=[change(values["lanes"][0], worker=None)]),
        lambda values: change(values, memory=[change(values["memory"][0], peak_nbytes=[1, 2, 3, 4])]),
        lambda values: change(values, memory=[change(values["memory"][0], name=["x"])]),
    ],
)
def test_what_is_no_timeline_is_no_report(report: ReportFigures, broken: object) -> None:
    values = report.to_dict()
    values["timeline"] = broken(values["timeline"]) if callable(broken) else broken
    with pytest.raises(InvalidCheckpoint, match="not a report"):
        ReportFigures.from_dict(json.loads(json.dumps(values)))


def test_a_report_of_a_release_without_it_has_none(report: ReportFigures) -> None:
    values = report.to_dict()
    del values["timeline"]
    assert ReportFigures.from_dict(values).timeline is None
