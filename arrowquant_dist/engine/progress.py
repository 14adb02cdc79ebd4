"""How far a run is: an engine's events, added up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from arrowquant_dist.engine.run import EngineEvent, OnEvent, finished
from arrowquant_dist.worker.job import Job


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done of the source, shards of an earlier run included. workers_alive: 0 before the engine has any.
    compiling: what a worker compiles kernels for, "" for nothing."""

    done_nbytes: int
    total_nbytes: int
    done_layers: int
    total_layers: int
    workers_alive: int
    compiling: str = ""


OnProgress = Callable[[Progress], None]  # from any thread, one call at a time


def counting_events(every: Iterable[Job], missing: Iterable[Job], on_progress: OnProgress | None) -> OnEvent:
    """What an engine calls with its events. every: the shards of the run; missing: those that are to be done.

    on_progress is called at once, with what an earlier run has done.
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
    """An attempt that died may be taken back or done twice; more than all, or less than nothing, is never done."""
    return max(0, min(count, total))
