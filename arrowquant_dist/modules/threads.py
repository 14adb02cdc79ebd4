"""Splits runs of rows over several threads: kernels release the GIL, and each run writes rows of its own.

The threads belong to this process and wait without spinning. Numba's parallel loops were rejected: their default
threading layer aborts the process when two threads enter it at once, and the OpenMP layer when a forked child does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

_MOST = 64  # threads; started as they are needed


def split_rows(work: Callable[[int, int], None], rows: int, parts: int, step: int) -> None:
    """Calls work(start, stop) for `parts` runs that make up range(rows), on this thread and others.

    All bounds but the last are multiples of `step`. Runs that no thread has started when this thread finishes its own
    are done here, so a caller that finds all threads busy waits for none of them. Raises what `work` raises.
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
