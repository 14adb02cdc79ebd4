"""Everything that is measured of a checkpoint and its datasets, against targets, as one report."""

from arrowquant_dist.validation.figures import Validation
from arrowquant_dist.validation.run import DEFAULT_CONFIGS, validate

__all__ = ["DEFAULT_CONFIGS", "Validation", "validate"]
