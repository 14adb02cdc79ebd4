"""cluster/grafana.json, as tests ask for what is in it."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.conftest import CHECKOUT

# Of Grafana, which puts in what fits the time that is shown.
_INTERVALS = {"$__rate_interval": "1m", "$__range": "5m"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHECKOUT / "cluster/grafana.json").read_text())
    return found


def expressions() -> list[str]:
    """PromQL, as Grafana would send it."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    for variable, interval in _INTERVALS.items():
        found = [expression.replace(variable, interval) for expression in found]
    return found


def series() -> set[str]:
    """Names of the metrics that it asks for."""
    return {name for expression in expressions() for name in re.findall(r"ray_\w+", expression)}
