"""A run's progress in words."""

from __future__ import annotations

import math

from arrowquant_dist.errors import counted
from arrowquant_dist.progress.rate import HowFar, RecentRate
from arrowquant_dist.report import text


def compiling_words(event: HowFar) -> str:
    return f"compiling kernels for {event.compiling}"


def done_words(event: HowFar) -> str:
    done, total = event.done_nbytes, event.total_nbytes
    share = text.share(done / total) if total else text.share(1.0)
    return f"{text.nbytes(done)} of {text.nbytes(total)}, {share}"


def layer_words(event: HowFar) -> list[str]:
    return [f"{event.done_layers} of {counted(event.total_layers, 'layer')}"] if event.total_layers else []


def speed_words(pace: RecentRate, now: float, event: HowFar) -> list[str]:
    return [*rate_words(pace, now), *left_words(pace, now, event)]


def rate_words(pace: RecentRate, now: float) -> list[str]:
    rate = pace.nbytes_per_second(now)
    return [f"{text.nbytes(rate)}/s"] if rate is not None else []


def left_words(pace: RecentRate, now: float, event: HowFar) -> list[str]:
    """The time left in whole seconds, rounded up, since it is an estimate."""
    left = pace.seconds_left(now, event)
    return [f"{text.whole_seconds(math.ceil(left))} left"] if left is not None else []


def worker_words(event: HowFar) -> list[str]:
    return [counted(event.workers_alive, "worker")] if event.total_layers else []


def said_within(room: int, event: HowFar, pace: RecentRate, now: float) -> str:
    """The text beside bar and percentage, in at most `room` characters: bytes, layers, rate, time left and workers.
    Where room is short, workers, layers, rate and bytes are left out in this order; the time left stays."""
    if event.compiling:
        return compiling_words(event) if len(compiling_words(event)) <= room else "compiling kernels"
    done = f"{text.nbytes(event.done_nbytes)} of {text.nbytes(event.total_nbytes)}"
    parts = {
        "bytes": [done],
        "layers": layer_words(event),
        "rate": rate_words(pace, now),
        "left": left_words(pace, now, event),
        "workers": worker_words(event),
    }
    for gone in ("", "workers", "layers", "rate", "bytes"):
        parts.pop(gone, None)
        said = ", ".join(words for part in parts.values() for words in part)
        if len(said) <= room:
            return said
    return said
