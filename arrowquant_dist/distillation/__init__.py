"""Trains what a dataset stores by what the original makes of texts."""

from arrowquant_dist.distillation.api import distill
from arrowquant_dist.distillation.result import Distilled
from arrowquant_dist.distillation.settings import DistillSettings

__all__ = ["DistillSettings", "Distilled", "distill"]
