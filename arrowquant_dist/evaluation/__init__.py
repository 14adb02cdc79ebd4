"""Compares the outputs of a quantized model with the original's."""

from arrowquant_dist.evaluation.api import evaluate
from arrowquant_dist.evaluation.by_texts import choose_by_texts
from arrowquant_dist.report.evaluation import Evaluation

__all__ = ["Evaluation", "choose_by_texts", "evaluate"]
