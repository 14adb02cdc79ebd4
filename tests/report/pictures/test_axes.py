"""Axes: round numbers that enclose what is shown."""

from __future__ import annotations

import itertools
import re

import pytest

from arrowquant_dist.report.pictures.axes import (
    Scale,
    across,
    counts,
    doubling,
    plain,
    round_step,
    scale,
    whole_ticks,
)


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [-7.0, 12.3], [1e-9, 2e-9], [8.1, 8.2, 41.0]])
def test_a_scale_encloses_its_values_in_few_round_steps(values: list[float]) -> None:
    found = scale(values, 40.0, 350.0)
    assert found.low <= min(values) <= max(values) <= found.high
    assert 2 <= len(found.ticks) <= 8
    assert found.at(found.low) == pytest.approx(40.0)
    assert found.at(found.high) == pytest.approx(350.0)


def test_every_doubling_takes_the_same_room() -> None:
    found = doubling([2.0, 16.0], 0.0, 100.0)
    assert found.at(4.0) - found.at(2.0) == pytest.approx(found.at(16.0) - found.at(8.0))
    assert found.ticks == (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
    assert 0.0 < found.at(2.0) < found.at(16.0) < 100.0


@pytest.mark.parametrize(
    ("step", "rounded"), [(0.9, 1.0), (1.0, 1.0), (1.2, 2.0), (2.2, 2.5), (6.0, 10.0), (0.03, 0.05)]
)
def test_steps_are_round(step: float, rounded: float) -> None:
    assert round_step(step) == pytest.approx(rounded)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10, 37, 600])
def test_what_is_counted_has_whole_figures_beside_it(most: int) -> None:
    found = counts(most, 200.0, 10.0)
    assert found.ticks[-1] == found.high >= most
    assert all(tick == int(tick) for tick in found.ticks)
    assert 2 <= len(found.ticks) <= 6


@pytest.mark.parametrize("values", [[3.95], [4.1, 4.95], [0.31, 0.33], [3.1, 3.3]])
def test_doublings_of_nearly_one_figure_have_round_figures_below_them(values: list[float]) -> None:
    found = doubling(values, 0.0, 100.0)
    assert 3 <= len(found.ticks) <= 8
    assert all(0.0 <= found.at(tick) <= 100.0 for tick in found.ticks)
    assert all(len(f"{tick:g}") <= 5 for tick in found.ticks)


@pytest.mark.parametrize(
    ("first", "last"), [(0, 5), (3, 3), (0, 999), (7, 999_999), (1, 61), (999_998, 999_999)]
)
def test_blocks_are_written_by_round_figures_that_find_room_side_by_side(first: int, last: int) -> None:
    ticks = whole_ticks(first, last, 300.0)
    assert ticks
    assert first <= ticks[0] <= ticks[-1] <= last
    widest = 7.0 * len(str(last))
    gaps = [300.0 * (b - a) / (last - first + 1) for a, b in itertools.pairwise(ticks)]
    assert all(gap > widest for gap in gaps)
    if last - first > 40:
        assert all(tick % 5 == 0 for tick in ticks)


def test_no_figure_ends_outside_of_the_picture() -> None:
    said = across(Scale(0.0, 34.5, 40.0, 350.0, (0.0, 34.5)), plain)
    x = max(float(found) for found in re.findall(r'<text x="([\d.]+)"', said))
    assert x + 2 * 7.3 <= 360.0
