"""Measures how long it takes to load all weights of the source, of its V1 file, and of each dataset."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from arrowquant_dist.config import Storage
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.location import Location
from arrowquant_dist.validation.figures import LoadTime
from arrowquant_dist.validation.source import opened_source

RUNS = 3
_ENOUGH_SECONDS = 20.0  # no further run begins after so long


@dataclass(frozen=True, slots=True)
class Loaded:
    """Bytes read, and size of all decoded values. verified: whether there were checksums to compare."""

    stored_nbytes: int
    decoded_nbytes: int
    verified: bool


def dataset_load(name: str, uri: str, storage: Storage, *, verified: bool) -> LoadTime:
    """Load time of a V1 or V2 dataset, as torch tensors. verified: whether it has checksums; they are compared."""

    def load() -> Loaded:
        decoded = 0
        with WeightLoader(uri, storage_options=storage.options, transfer=storage.transfer) as loader:
            for _, tensor in loader:
                decoded += tensor.nbytes
            return Loaded(loader.stats.nbytes_read, decoded, verified)

    return _timed(name, load)


def source_load(source: Location, storage: Storage) -> LoadTime:
    """Load time of a checkpoint of any format, as arrays, with the reader that `quantize` uses. Only a V2 dataset has
    checksums."""

    def load() -> Loaded:
        with opened_source(source, storage) as opened:
            decoded = sum(
                piece.nbytes for layer in opened.checkpoint.layers for piece in opened.pieces(layer)
            )
            checkpoint = opened.checkpoint
            return Loaded(sum(file.nbytes for file in checkpoint.files), decoded, checkpoint.format == "v2")

    return _timed("source", load)


def _timed(name: str, load: Callable[[], Loaded]) -> LoadTime:
    """Loads once to compile kernels and fill caches, then up to RUNS times with the clock running."""
    began = time.perf_counter()
    loaded = load()
    runs: list[float] = []
    while len(runs) < RUNS and (not runs or time.perf_counter() - began < _ENOUGH_SECONDS):
        start = time.perf_counter()
        load()
        runs.append(time.perf_counter() - start)
    return LoadTime(
        name,
        statistics.median(runs),
        tuple(runs),
        loaded.stored_nbytes,
        loaded.decoded_nbytes,
        loaded.verified,
    )
