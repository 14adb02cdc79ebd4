"""Memory over time: points where memory was measured, and the bound if it is near."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from arrowquant_dist.report.pictures.axes import BOTTOM, LEFT, RIGHT, TOP
from arrowquant_dist.report.pictures.memory import memory_over_time
from arrowquant_dist.report.pictures.svg import Picture
from arrowquant_dist.target.receipt import Receipt
from tests.reduce.attempts import attempt, cluster, timeline_of
from tests.report.report_samples import golden_report

REPORT = golden_report()
MIB = 1 << 20


def drawn(receipts: Sequence[Receipt]) -> Picture:
    picture = memory_over_time(replace(REPORT, timeline=timeline_of(receipts)))
    assert picture is not None
    return picture


def dots(picture: Picture) -> list[tuple[str, float, float]]:
    return [
        (circle.attrib["class"], float(circle.attrib["cx"]), float(circle.attrib["cy"]))
        for circle in ElementTree.fromstring(picture.svg).iter("circle")  # noqa: S314 - our own
    ]


def measured(shard: int, stop: float, mib: int, worker: str = "n/1", peak: int = 200) -> Receipt:
    return attempt(shard, stop - 0.5, 0.5, worker, resident_nbytes=mib * MIB, peak_memory_nbytes=peak * MIB)


def test_a_process_has_a_line_with_a_dot_a_shard_and_more_memory_stands_higher() -> None:
    picture = drawn([measured(0, 2.0, 100), measured(1, 4.0, 150), measured(2, 3.0, 120, "m/2")])
    (_, x, y), (_, later, higher) = [dot for dot in dots(picture) if dot[0] == "line-0"]
    assert x == pytest.approx(LEFT + (RIGHT - LEFT) * 0.2, abs=0.1)
    assert later == pytest.approx(LEFT + (RIGHT - LEFT) * 0.4, abs=0.1)
    assert higher < y < BOTTOM
    assert picture.legend == (("line-0", "n/1"), ("line-1", "m/2"))
    assert ">MB<" in picture.svg


def test_the_peak_is_a_line_above_what_was_resident() -> None:
    picture = drawn([measured(0, 2.0, 100, peak=180), measured(1, 4.0, 120, peak=190)])
    [peak] = re.findall(r'<path d="M([^"]*)" class="trace peak line-0"', picture.svg)
    heights = [float(point.split()[1]) for point in peak.split("L")]
    assert heights == sorted(heights, reverse=True)
    assert max(heights) < min(y for _, _, y in dots(picture))


def test_the_bound_is_drawn_where_it_is_near_and_written_in_any_case() -> None:
    near, far = drawn([measured(0, 2.0, 200)]), drawn([measured(0, 2.0, 20, peak=30)])
    assert 'class="bound"' in near.svg
    assert 'class="bound"' not in far.svg
    for picture in (near, far):
        assert "The plan's bound is 419.4 MB a worker." in picture.caption
    threads = [measured(0, 2.0, 200), replace(measured(1, 3.0, 200), thread=1)]
    assert "2 workers share a process" in drawn(threads).caption


def test_what_the_system_does_not_say_is_not_drawn_and_said() -> None:
    picture = drawn([attempt(0, 0.0, 1.0, resident_nbytes=None, peak_memory_nbytes=100 * MIB)])
    assert dots(picture) == []
    assert "trace peak" in picture.svg
    assert "did not report" in picture.caption


def test_a_large_cluster_is_one_line_of_its_largest_process_within_the_picture() -> None:
    picture = drawn(cluster(workers=256, shards=9000))
    assert picture.legend == (("line-0", "the largest of 256 processes"),)
    assert "The times of a node are those of its own clock." in picture.caption
    for _, x, y in dots(picture):
        assert LEFT <= x <= RIGHT
        assert TOP <= y <= BOTTOM
    assert len(picture.svg) < 40_000


def test_names_are_inert() -> None:
    picture = drawn([measured(0, 1.0, 100, "</title></svg><script>x</script>\u202e")])
    ElementTree.fromstring(picture.svg)  # noqa: S314 - our own
    assert "<script" not in picture.svg
    assert "\u202e" not in picture.svg


def test_nothing_is_drawn_without_figures() -> None:
    assert memory_over_time(replace(REPORT, timeline=None)) is None
    assert memory_over_time(replace(REPORT, timeline=timeline_of([]))) is None
