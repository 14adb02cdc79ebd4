"""The search for a step, with any function to search."""

from __future__ import annotations

import pytest

from arrowquant_dist.sizing import STEPS, Tried, largest_within


@pytest.mark.parametrize("allowed", [3e-7, 1e-4, 0.02, 0.5])
def test_ten_tries_find_a_step_wherever_it_is(allowed: float) -> None:
    tried: list[float] = []

    def at(step: float) -> Tried[float]:
        tried.append(step)
        loss = 0.05 * step**2
        return Tried(step, loss - allowed, loss)

    found, _ = largest_within(at, 0.5, STEPS, 0.03 * allowed, falls=False, tries=10)
    assert len(tried) <= 10
    assert found is not None
    assert 0.5 * allowed <= found.found <= allowed


def test_nothing_is_said_of_what_lies_beyond_the_bounds_before_they_are_tried() -> None:
    tried: list[float] = []

    def at(step: float) -> Tried[float]:
        tried.append(step)
        return Tried(step, 1.0, 1.0)

    found, beyond = largest_within(at, 0.5, STEPS, 0.1, falls=False, tries=10)
    assert found is None
    assert beyond is not None
    assert tried[-1] == pytest.approx(STEPS[0])
