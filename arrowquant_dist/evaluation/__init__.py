"""How far the outputs of a quantized model are from the original's."""

from arrowquant_dist.evaluation.run import evaluate
from arrowquant_dist.report.evaluation import Evaluation

__all__ = ["Evaluation", "evaluate"]
