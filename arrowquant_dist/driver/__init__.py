"""Turns a source and a target into a dataset and its report: `quantize` and the steps it is made of."""

from arrowquant_dist.driver.outcome import Outcome
from arrowquant_dist.driver.quantizer import ArrowQuantizer
from arrowquant_dist.driver.run import Preview, chosen_before, opened_choice, plan_only, preview, quantize
from arrowquant_dist.driver.tracked import quantize_tracked
from arrowquant_dist.engine.progress import OnProgress, Progress

__all__ = [
    "ArrowQuantizer",
    "OnProgress",
    "Outcome",
    "Preview",
    "Progress",
    "chosen_before",
    "opened_choice",
    "plan_only",
    "preview",
    "quantize",
    "quantize_tracked",
]
