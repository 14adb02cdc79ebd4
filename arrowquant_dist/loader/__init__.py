"""Weights back from a dataset: by name, by rows, as a stream under a memory budget, or into a module."""

from arrowquant_dist.loader.slots import LoadedKeys
from arrowquant_dist.loader.weights import LoaderStats, WeightLoader

__all__ = ["LoadedKeys", "LoaderStats", "WeightLoader"]
