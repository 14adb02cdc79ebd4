"""All that is known of a finished dataset without its weights: its report, its layers, and what was evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.layer_rows import LayerRow


@dataclass(frozen=True, slots=True)
class Reported:
    """name: what it goes by, safe to show. layers: None where they were not read, or layers.parquet is not there."""

    name: str
    report: ReportFigures
    evaluations: tuple[Evaluation, ...] = ()
    layers: tuple[LayerRow, ...] | None = None
