"""Numbers for a report: JSON has no infinity, and a ratio to nothing is None."""

from __future__ import annotations

import math


def finite(value: float) -> float | None:
    """`value`, or None where JSON cannot hold it."""
    return float(value) if math.isfinite(value) else None


def ratio(numerator: float, denominator: float) -> float | None:
    """numerator / denominator; None where there is nothing to divide by."""
    return finite(numerator / denominator) if denominator else None
