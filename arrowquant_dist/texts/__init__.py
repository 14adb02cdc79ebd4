"""Texts for calibration, evaluation and distillation: a caller's own, or those that come with the package."""

from arrowquant_dist.texts.read import Texts, read_texts

__all__ = ["Texts", "read_texts"]
