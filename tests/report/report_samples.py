"""A report as version 2 writes it, with hostile names in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.reduce import LayerMetrics, ReportFigures
from arrowquant_dist.target.receipt import Receipt
from tests.reduce.attempts import timeline_of

GOLDEN = Path(__file__).parent / "golden_report.json"


def golden_values() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(GOLDEN.read_text())
    return values


def golden_report() -> ReportFigures:
    return ReportFigures.from_dict(golden_values())


def timed_report(receipts: Sequence[Receipt]) -> ReportFigures:
    """The same report from a release that records when shards were made."""
    return replace(golden_report(), timeline=timeline_of(receipts))


def layer_metrics(name: str, errors: ErrorSums | None) -> LayerMetrics:
    return LayerMetrics(
        layer_name=name,
        layer_type="other",
        shape=(8, 8),
        dtype="float32",
        quant_type="int8",
        method="rtn",
        quant_axis=0,
        group_size=0,
        row_blocks=1,
        params=64,
        source_nbytes=256,
        data_nbytes=64,
        scales_nbytes=32,
        zero_points_nbytes=0,
        stored_nbytes=90,
        kept_reason=None,
        errors=errors,
    )
