"""Reduces receipts to totals: the figures of what a run made of the checkpoint."""

from arrowquant_dist.reduce.facts import HostFacts, RunFacts
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.reduce.layers import LayerMetrics, combine_layers
from arrowquant_dist.reduce.totals import reduce_layers

__all__ = ["HostFacts", "LayerMetrics", "ReportFigures", "RunFacts", "combine_layers", "reduce_layers"]
