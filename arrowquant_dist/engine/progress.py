"""Adds up an engine's events to the progress of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from arrowquant_dist.engine.run import EngineEvent, OnEvent, finished
from arrowquant_dist.worker.job import Job


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    done_nbytes, total_nbytes: bytes of the source that are done and in total; shards of an earlier run count as done.
    done_layers, total_layers: layers likewise.
    workers_alive: number of workers, 0 before the engine has any.
    compiling: what a worker compiles kernels for, "" for nothing.
    """

    done_nbytes: int
    total_nbytes: int
    done_layers: int
    total_layers: int
    workers_alive: int
    compiling: str = ""


OnProgress = Callable[[Progress], None]  # from any thread, one call at a time


def counting_events(every: Iterable[Job], missing: Iterable[Job], on_progress: OnProgress | None) -> OnEvent:
    """The function that an engine calls with its events. every: all shards of the run. missing: those that still have
    to be done.

    on_progress is called immediately with what an earlier run has done.
    """
    if on_progress is None:
        return lambda _: None
    counter = _Counter(every, missing, on_progress)
    counter.add(finished([], 0))
    return counter.add


class _Counter:
    def __init__(self, every: Iterable[Job], missing: Iterable[Job], on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._total, left = _sum_of(every), _sum_of(missing)
        self._nbytes, self._layers = self._total.nbytes - left.nbytes, self._total.layers - left.layers

    def add(self, event: EngineEvent) -> None:
        with self._lock:
            self._nbytes += event.nbytes
            self._layers += event.layers
            total = self._total
            self._on_progress(
                Progress(
                    done_nbytes=_within(self._nbytes, total.nbytes),
                    total_nbytes=total.nbytes,
                    done_layers=_within(self._layers, total.layers),
                    total_layers=total.layers,
                    workers_alive=event.workers_alive,
                    compiling=event.compiling,
                )
            )


def _sum_of(shards: Iterable[Job]) -> EngineEvent:
    return finished([block for shard in shards for block in shard.blocks], 0)


def _within(count: int, total: int) -> int:
    """The count, limited to [0, total]: attempts that died may be subtracted or done twice."""
    return max(0, min(count, total))
