"""What is known about a finished dataset without reading its weights: its report, its layers and its evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.layer_rows import LayerRow


@dataclass(frozen=True, slots=True)
class Reported:
    """A dataset and what was reported about it. name: what to call the dataset, safe to show. layers: figures of all
    layers; None if they were not read or layers.parquet is missing."""

    name: str
    report: ReportFigures
    evaluations: tuple[Evaluation, ...] = ()
    layers: tuple[LayerRow, ...] | None = None
