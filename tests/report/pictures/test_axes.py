"""Axes: round figures that enclose what is shown."""

from __future__ import annotations

import pytest

from arrowquant_dist.report.pictures.axes import doubling, round_step, scale


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
