"""Texts to calibrate, evaluate and distil with: a caller's own, or those that come with the package."""

from arrowquant_dist.texts.read import Texts, read_texts

__all__ = ["Texts", "read_texts"]
