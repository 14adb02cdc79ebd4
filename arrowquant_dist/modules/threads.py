"""Runs of rows on several threads: kernels release the GIL, and each run writes rows of its own.

The threads are this process's own and wait without spinning. Numba's parallel loops were left aside: their default
layer ends the process when two threads enter it at once, and that of OpenMP when a forked child does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

_MOST = 64  # threads; they are started as they are needed


def split_rows(work: Callable[[int, int], None], rows: int, parts: int, step: int) -> None:
    """Calls work(start, stop) for `parts` runs that make up range(rows), on this thread and others.

    Bounds are multiples of `step`, the last one aside. What a thread has not begun when this one is through with its
    own part is done here, so callers that find all threads busy wait for none of them. Raises what `work` raises.
    """
    bounds = [rows * part // parts // step * step for part in range(parts)] + [rows]
    runs = [(start, stop) for start, stop in pairwise(bounds) if start < stop]
    others = [(run, _threads().submit(work, *run)) for run in runs[1:]]
    for run in runs[:1]:
        work(*run)
    for run, future in reversed(others):
        if future.cancel():
            work(*run)
        else:
            future.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST, "arrowquant-rows")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads
