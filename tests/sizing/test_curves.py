"""Values between two measured steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.sizing.curves import measured_curve
from arrowquant_dist.sizing.measure import MOST_CUT, Measured, outermost_share

STEPS = [0.25, 0.5, 1.0, 2.0]


def spec_at(container: str, step: float) -> QuantSpec:
    return QuantSpec(container, group_size=0, method="size", step=step)


def measured(spec: QuantSpec, cut_below: float = 0.4) -> Measured:
    """As if a layer took 1,000 / step bytes, as int4 a hundredth less, which cuts below some step."""
    nbytes = round(1000 / spec.step * (0.99 if spec.quant_type == "int4" else 1.0))
    cut = spec.quant_type == "int4" and spec.step < cut_below
    return Measured(
        spec, spec.step**2, ErrorSums(), 2 * MOST_CUT if cut else 0.0, (nbytes, 2 * nbytes), (10, 20), (0, 0)
    )


@given(st.floats(0.25, 2.0), st.sampled_from([0.1, 0.4, 0.7, 1.5, 5.0]))
def test_bytes_between_are_on_the_curve_and_codes_that_would_be_cut_are_in_int8(
    step: float, cut_below: float
) -> None:
    found = measured_curve(STEPS, spec_at, lambda spec: measured(spec, cut_below)).at(step)
    is_cut = max(s for s in STEPS[:-1] if s <= step) < cut_below
    assert found.spec.quant_type == ("int8" if is_cut else "int4")
    assert found.spec.step == step
    expected = 1000 / step * (1.0 if is_cut else 0.99)
    assert found.data_nbytes == pytest.approx((expected, 2 * expected), rel=0.005, abs=3)
    assert found.error == pytest.approx(step**2, rel=1e-6)


@given(st.lists(st.floats(0.25, 2.0), min_size=2, max_size=2))
def test_a_coarser_step_takes_no_more(steps: list[float]) -> None:
    curve = measured_curve(STEPS, spec_at, measured)
    fine, coarse = (curve.at(step).nbytes for step in sorted(steps))
    assert fine >= coarse


def test_no_container_is_measured_at_steps_where_it_is_not_used() -> None:
    seen: list[tuple[str, float]] = []

    def measure(spec: QuantSpec) -> Measured:
        seen.append((spec.quant_type, spec.step))
        return measured(spec)

    measured_curve(STEPS, spec_at, measure)
    assert seen == [
        ("int4", 2.0),
        ("int4", 1.0),
        ("int4", 0.5),
        ("int4", 0.25),
        ("int8", 0.25),
        ("int8", 0.5),
    ]


@pytest.mark.parametrize(
    ("bits", "codes", "share"),
    [
        (8, [127, 128, 0, 126, 129, 255], 2 / 6),
        (4, [0x00, 0xF0, 0x0F, 0x1E, 0xE1, 0x80], 7 / 12),
    ],
)
def test_values_that_may_be_cut_off_are_those_with_the_outermost_codes(
    bits: int, codes: list[int], share: float
) -> None:
    assert outermost_share(np.array(codes, np.uint8), bits) == share
