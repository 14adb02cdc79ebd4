"""Writes a dataset in the formats that other programs serve from: one module per format, with pure packers, and what
runs them."""

from arrowquant_dist.export.options import ExportOptions
from arrowquant_dist.export.run import Exported, export_dataset, plan_export

__all__ = ["ExportOptions", "Exported", "export_dataset", "plan_export"]
