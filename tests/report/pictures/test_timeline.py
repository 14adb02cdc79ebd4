"""Workers and shards over time: a lane per worker, a bar per shard, all within the run, bounded in size."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree

import pytest

from arrowquant_dist.reduce import ReportFigures
from arrowquant_dist.reduce.timeline import MOST_BARS, MOST_LANES
from arrowquant_dist.report.pictures.axes import RIGHT
from arrowquant_dist.report.pictures.svg import Picture
from arrowquant_dist.report.pictures.timeline import shards_over_time, why_untimed
from arrowquant_dist.target.receipt import Receipt
from tests.reduce.attempts import attempt, cluster, timeline_of
from tests.report.report_samples import golden_report

REPORT = golden_report()
LEFT = 78.0
TWO = [
    attempt(0, 1.0, 2.0, thread=4),
    attempt(1, 1.0, 4.0, thread=5),
    attempt(2, 5.0, 3.0, thread=4),
]


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    said: str


def drawn(receipts: Sequence[Receipt], resumed_shards: tuple[int, ...] = ()) -> Picture:
    run = replace(REPORT.run, workers=2, resumed_shards=resumed_shards)
    report = replace(REPORT, timeline=timeline_of(receipts, resumed=resumed_shards), run=run)
    assert why_untimed(report) == ""
    picture = shards_over_time(report)
    assert picture is not None
    return picture


def boxes(picture: Picture, tone: str) -> list[Box]:
    return [
        Box(
            float(rect.attrib["x"]),
            float(rect.attrib["y"]),
            float(rect.attrib["width"]),
            rect.findtext("title", ""),
        )
        for rect in ElementTree.fromstring(picture.svg).iter("rect")  # noqa: S314 - our own
        if rect.attrib.get("class") == tone
    ]


def stripes(picture: Picture) -> dict[str, list[tuple[float, float, float]]]:
    """{phase: [(left, right, y)]}."""
    return {
        path.attrib["class"].removeprefix("stripe phase-"): [
            (float(x), float(end), float(y))
            for x, y, end in re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)", path.attrib["d"])
        ]
        for path in ElementTree.fromstring(picture.svg).iter("path")  # noqa: S314 - our own
        if "phase-" in path.attrib.get("class", "")
    }


def test_every_worker_has_a_lane_and_every_shard_a_bar_where_it_was_made() -> None:
    picture = drawn(TWO)
    assert len(boxes(picture, "idle")) == 2
    bars = {bar.said.split(",")[0]: bar for bar in boxes(picture, "shard")}
    assert set(bars) == {"shard 0", "shard 1", "shard 2"}
    assert bars["shard 0"].y == bars["shard 2"].y != bars["shard 1"].y
    second = (RIGHT - LEFT) / 10.0
    for name, start, seconds in (("shard 0", 1, 2), ("shard 1", 1, 4), ("shard 2", 5, 3)):
        assert bars[name].x == pytest.approx(LEFT + start * second, abs=0.1)
        assert bars[name].width == pytest.approx(seconds * second - 0.6, abs=0.15)


def test_a_bar_is_its_phases_and_what_is_none_of_them_side_by_side() -> None:
    picture = drawn([attempt(0, 1.0, 5.0)])
    found = stripes(picture)
    assert [tone for tone, _ in picture.legend] == [
        "phase-read",
        "phase-quantize",
        "phase-write",
        "phase-other",
    ]
    spans = [span for phase in ("read", "quantize", "write", "other") for span in found[phase]]
    for (_, end, _), (begin, _, _) in itertools.pairwise(spans):
        assert begin == pytest.approx(end, abs=0.11)
    [bar] = boxes(picture, "shard")
    assert spans[0][0] == bar.x
    lengths = [end - begin for begin, end, _ in spans]
    whole = sum(lengths)
    assert [length / whole for length in lengths] == pytest.approx([0.2, 0.6, 0.1, 0.1], abs=0.005)


def test_phases_that_add_up_to_more_than_the_shard_took_stay_within_its_bar() -> None:
    longer = replace(attempt(0, 1.0, 2.0), seconds={"read": 3.0, "quantize": 3.0, "write": -1.0})
    picture = drawn([longer])
    [bar] = boxes(picture, "shard")
    for spans in stripes(picture).values():
        assert all(bar.x - 0.1 <= begin <= end <= bar.x + bar.width + 0.1 for begin, end, _ in spans)


@pytest.mark.parametrize(
    "receipts",
    [
        [attempt(0, -5000.0, 1.0), attempt(1, 3.0, 1.0)],
        [attempt(0, 90_000.0, 5.0, "off/1"), attempt(1, 3.0, 1.0)],
        [attempt(0, -3.0, 90_000.0)],
        [attempt(i, 9.999, 0.0005) for i in range(50)],
        cluster(64, 5000),
    ],
)
def test_no_bar_is_outside_of_the_axis_or_of_no_width(receipts: list[Receipt]) -> None:
    picture = drawn(receipts)
    for bar in boxes(picture, "shard"):
        assert bar.width > 0
        assert LEFT <= bar.x <= bar.x + bar.width <= RIGHT + 0.11
    for begin, end, _ in itertools.chain(*stripes(picture).values()):
        assert LEFT <= begin <= end <= RIGHT + 0.11


def test_lanes_are_called_by_their_process_under_their_node() -> None:
    svg = drawn([*TWO, attempt(3, 2.0, 1.0, "other-node/77")]).svg
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    assert labels[:5] == ["n", "1 · 1", "1 · 2", "other-node", "77"]
    assert re.findall(r"<text [^>]*>(worker \d)</text>", drawn(TWO).svg) == ["worker 1", "worker 2"]


def test_what_is_not_on_the_picture_is_said_below_it() -> None:
    assert "clock" not in drawn(TWO).caption
    several = drawn([*TWO, attempt(3, 2.0, 1.0, "m/1"), attempt(4, 7200.0, 1.0, "far/1")]).caption
    assert "The times of a node are those of its own clock." in several
    assert "The times of 1 node were outside of the run and were moved into it, by up to 1 h 59" in several
    earlier = drawn([attempt(9, -9000.0, 1.0), attempt(8, -1.0, 3.0, thread=4)], resumed_shards=(9,)).caption
    assert "Not drawn: 1 shard of earlier runs." in earlier
    assert "Drawn only from the beginning of the run: 1 shard that began before it." in earlier
    assert "1 of 2 workers made no shard." in earlier


def test_of_a_large_cluster_all_workers_are_counted_and_some_have_lanes() -> None:
    picture = drawn(cluster(workers=256, shards=20_000))
    assert len(boxes(picture, "idle")) == MOST_LANES + 1
    assert len(boxes(picture, "shard")) <= MOST_BARS + MOST_LANES
    assert "workers at work, of 256" in picture.svg
    assert (
        "Of 256 workers, the 8 that worked longest and the 8 that worked least are shown." in picture.caption
    )
    assert "A bar may stand for several shards." in picture.caption
    assert len(picture.svg) < 250_000


@pytest.mark.parametrize("hostile", ["</title></svg><script>x</script>\u202e\x1b", "/", "", "名" * 90])
def test_names_are_inert(hostile: str) -> None:
    picture = drawn([attempt(0, 1.0, 1.0, hostile, node=hostile)])
    ElementTree.fromstring(picture.svg)  # noqa: S314 - our own
    assert "<script" not in picture.svg
    assert not {"\u202e", "\x1b"} & set(picture.svg)


def test_without_figures_there_is_no_picture_but_a_reason() -> None:
    older: ReportFigures = replace(REPORT, timeline=None)
    assert shards_over_time(older) is None
    assert "did not record it" in why_untimed(older)
    nothing = replace(REPORT, timeline=timeline_of([attempt(0, 1.0, 1.0)], resumed=(0,)))
    assert shards_over_time(nothing) is None
    assert "finished before this run" in why_untimed(nothing)
