"""The dashboard shows only metrics that runs export, and all of them (tests/engine/ray/test_growing.py checks that with
a real run)."""

from __future__ import annotations

import re

from arrowquant_dist.engine.ray import metrics
from tests.cluster.dashboard import dashboard, expressions, series
from tests.conftest import CHECKOUT

DEFINED = re.compile(r"(Counter|Gauge)\(\s*\"(\w+)\"")


def exported() -> set[str]:
    """Names as Prometheus sees them."""
    assert metrics.__file__
    source = (CHECKOUT / "arrowquant_dist/engine/ray/metrics.py").read_text()
    return {f"ray_{name}{'_total' * (kind == 'Counter')}" for kind, name in DEFINED.findall(source)}


def test_it_shows_each_metric_and_no_other() -> None:
    assert len(exported()) == 11
    assert series() == exported()


def test_counters_are_rates_and_gauges_are_not() -> None:
    for expression in expressions():
        for name in re.findall(r"ray_\w+", expression):
            is_rate = re.search(rf"(rate|increase)\({name}\[", expression) is not None
            assert is_rate == name.endswith("_total"), expression


def test_panels_do_not_overlap_and_each_says_what_it_shows() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"]
        assert panel["description"]
        assert [target["refId"] for target in panel["targets"]] == [*"ABCD"[: len(panel["targets"])]]


def test_it_asks_for_the_data_source_that_is_chosen() -> None:
    found = dashboard()
    assert [one["name"] for one in found["templating"]["list"]] == ["datasource"]
    assert {target["datasource"]["uid"] for panel in found["panels"] for target in panel["targets"]} == {
        "${datasource}"
    }
