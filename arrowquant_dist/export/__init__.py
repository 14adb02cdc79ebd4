"""A dataset in the formats that other programs serve from: a file a format, of pure packers, and what runs them."""

from arrowquant_dist.export.options import ExportOptions
from arrowquant_dist.export.run import Exported, export_dataset, plan_export

__all__ = ["ExportOptions", "Exported", "export_dataset", "plan_export"]
