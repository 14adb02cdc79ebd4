"""Chooses type, method and step of each layer so that a dataset has a given size or a given quality: what `size` and
`min_quality` of a config ask for.

It takes one pass over some rows of every layer, before a plan is final; no model is built and nothing is written.
"""

from arrowquant_dist.sizing.calibrated import choose_calibrated_size
from arrowquant_dist.sizing.estimate import estimated_sizes
from arrowquant_dist.sizing.for_calibration import table_for_calibration
from arrowquant_dist.sizing.run import STEPS, ChosenTable, choose_quality, choose_size, opened_steps
from arrowquant_dist.sizing.search import Tried, largest_within
from arrowquant_dist.sizing.table import FOUND

__all__ = [
    "FOUND",
    "STEPS",
    "ChosenTable",
    "Tried",
    "choose_calibrated_size",
    "choose_quality",
    "choose_size",
    "estimated_sizes",
    "largest_within",
    "opened_steps",
    "table_for_calibration",
]
