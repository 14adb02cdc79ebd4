"""Trains the stored values of a dataset so that its outputs for texts come closer to the original's."""

from arrowquant_dist.distillation.api import distill
from arrowquant_dist.distillation.result import Distilled
from arrowquant_dist.distillation.settings import DistillSettings

__all__ = ["DistillSettings", "Distilled", "distill"]
