"""A report can be read back from its JSON, and anything else is refused."""

from __future__ import annotations

import json

import pytest

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.reduce import ReportFigures


def test_a_report_comes_back_from_its_json(report: ReportFigures) -> None:
    values = json.loads(json.dumps(report.to_dict()))
    assert values == report.to_dict()
    assert ReportFigures.from_dict(values) == report


@pytest.mark.parametrize(
    "change",
    [
        {"report_version": 1},
        {"report_version": 3},
        {"work": {}},
        {"work": {"nodes": 3}},
        {"report_version": None},
        {"totals": {}},
        {"totals": None},
        {"run": {"engine": "inline"}},
        {"worst_layers": [{"shape": 3}]},
        {"accuracy": {"cosine": 1}},
    ],
)
def test_what_is_no_report_is_refused(report: ReportFigures, change: dict[str, object]) -> None:
    with pytest.raises(InvalidCheckpoint, match="report"):
        ReportFigures.from_dict({**report.to_dict(), **change})
