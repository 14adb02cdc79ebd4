"""Reads cluster/grafana.json for tests."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.conftest import CHECKOUT

# A variable that Grafana replaces by an interval that fits the time shown.
_INTERVALS = {"$__rate_interval": "1m", "$__range": "5m"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHECKOUT / "cluster/grafana.json").read_text())
    return found


def expressions() -> list[str]:
    """The PromQL expressions, as Grafana would send them."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    for variable, interval in _INTERVALS.items():
        found = [expression.replace(variable, interval) for expression in found]
    return found


def series() -> set[str]:
    """Names of the metrics that the dashboard queries."""
    return {name for expression in expressions() for name in re.findall(r"ray_\w+", expression)}
