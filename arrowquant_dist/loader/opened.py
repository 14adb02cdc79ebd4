"""A dataset that a loader has opened, tied to the process that opened it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arrowquant_dist.config import Storage
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.dataset.assemble import Assembler
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Budget, Lane, Load, load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.errors import MemoryBudgetExceeded
from arrowquant_dist.loader.lent import Lender
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.storage.open import open_store

REMOTE_WORKERS = 8
_WIDEST = 8  # bytes of the largest decoded value
HEDGES = 2  # each may take range_bytes in addition to the budget


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """The checked settings of a loader. memory_nbytes: its budget. workers: None for the default of the storage."""

    uri: str
    storage: Storage
    memory_nbytes: int
    verify: bool
    dequantize: bool
    dtype: str | None
    workers: int | None

    def summary(self) -> dict[str, object]:
        """Returns settings to display to people, without those of the storage."""
        return {
            "memory_budget": rounded_size(self.memory_nbytes),
            "gives": "QuantizedTensor" if not self.dequantize else self.dtype or "the source's dtypes",
            "verify": self.verify,
        }


class OpenDataset:
    """A dataset, the memory budget of everything that is read from it, and the process that both belong to.

    names: {stored name: that name and its aliases}, in storage order. After a fork, the child has neither the reading
    threads nor those of fsspec, and locks that they held are never released: it has to open the dataset again.
    """

    def __init__(self, settings: LoaderSettings, *, is_local: bool) -> None:
        self.pid = os.getpid()
        store = open_store(settings.uri, settings.storage)
        self.dataset = Dataset.of(store) if store.is_near else Dataset.unconfirmed(store)
        kept = self.dataset.kept_nbytes
        if kept > settings.memory_nbytes:
            message = (
                f"decoding a row group of it takes {rounded_size(kept)}, but memory_budget is "
                f"{rounded_size(settings.memory_nbytes)}; raise it, or write the file with a row group per layer"
            )
            raise MemoryBudgetExceeded(message, uri=self.dataset.uri)
        workers = settings.workers or (usable_cpus() if is_local else REMOTE_WORKERS)
        # Layers come in order from one open row group; several threads would reopen row groups over and over.
        self.workers = 1 if kept else workers
        self.budget = Budget(settings.memory_nbytes - kept)
        self.assembler = Assembler(self.dataset, self.workers, self.budget.limit_nbytes, settings.verify)
        self.names = _names_by_layer(self.dataset)
        self._lender: weakref.ref[Lender] | None = None

    @property
    def is_of_this_process(self) -> bool:
        return self.pid == os.getpid()

    def close(self) -> None:
        """Ends everything that reads from the dataset, with all threads, and closes its files."""
        for stream in [*self.budget.streams]:
            stream.close()
            stream.pool.shutdown()
        self.budget.threads.close()
        self.dataset.store.release()

    def lender(self) -> Lender:
        """Returns the lender that all current borrowed streams share: memory that one of them returns, another takes.
        The lender's memory is freed together with the last of them."""
        with self.budget.changed:
            lender = self._lender() if self._lender is not None else None
            if lender is None:
                decoded = sum(layer.num_params for layer in self.dataset.layers.values()) * _WIDEST
                nbytes = min(self._limit, decoded)
                lender = Lender(
                    nbytes + nbytes // 4, self.budget
                )  # somewhat more than fits the budget, to leave room for pieces of different sizes
                self._lender = weakref.ref(lender)
            return lender

    def differ(self, first: StoredLayer, second: StoredLayer, dtypes: tuple[str, str]) -> bool:
        """Returns whether two layers of the same shape have different values when decoded to `dtypes`. Compares some
        rows at a time, so that both fit the budget."""
        rows = first.shape[0] if first.shape else 0
        step = max(rows, 1)
        while step > 1 and self._both(first, second, _run(first, 0, step), dtypes).peak_nbytes > self._limit:
            step = -(-step // 2)
        runs = [_run(first, start, step) for start in range(0, max(rows, 1), step)]
        return not all(
            _are_equal(load_now(self._both(first, second, run, dtypes), self.budget)) for run in runs
        )

    @property
    def _limit(self) -> int:
        return self.budget.limit_nbytes

    def _both(
        self, first: StoredLayer, second: StoredLayer, spans: dict[int, range], dtypes: tuple[str, str]
    ) -> Load[tuple[np.ndarray, np.ndarray]]:
        one = self.assembler.values(Region.cut(first, spans), dtypes[0])
        other = self.assembler.values(Region.cut(second, spans), dtypes[1])

        def begin() -> tuple[Sequence[Lane], Any]:
            lanes, result = one.begin()
            more, other_result = other.begin()
            return [*lanes, *more], lambda: (result(), other_result())

        peak = one.peak_nbytes + other.peak_nbytes
        return Load(one.name, peak, one.result_nbytes + other.result_nbytes, begin)


def _run(layer: StoredLayer, start: int, step: int) -> dict[int, range]:
    return {0: range(start, min(start + step, layer.shape[0]))} if layer.shape else {}


def _names_by_layer(dataset: Dataset) -> dict[str, list[str]]:
    names = {stored: [stored] for stored in dataset.layers}
    for alias, stored in dataset.aliases.items():
        names[stored].append(alias)
    return names


def _are_equal(pair: tuple[np.ndarray, np.ndarray]) -> bool:
    """Returns whether two arrays of the same shape have the same dtype and bytes."""
    first, second = pair
    return first.dtype == second.dtype and np.array_equal(_bytes(first), _bytes(second))


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
