"""Reads weights back from a dataset: by name, in parts, as a stream under a memory budget, or into a module."""

from arrowquant_dist.loader.parts import TensorParallel
from arrowquant_dist.loader.slots import LoadedKeys
from arrowquant_dist.loader.stream import WeightStream
from arrowquant_dist.loader.weights import LoaderStats, WeightLoader

__all__ = ["LoadedKeys", "LoaderStats", "TensorParallel", "WeightLoader", "WeightStream"]
