"""Measures a checkpoint and the datasets made from it, compares them with targets, and writes one report."""

from arrowquant_dist.validation.api import validate
from arrowquant_dist.validation.figures import Validation
from arrowquant_dist.validation.named_configs import DEFAULT_CONFIGS

__all__ = ["DEFAULT_CONFIGS", "Validation", "validate"]
