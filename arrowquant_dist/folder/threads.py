"""Many small requests side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_THREADS = 16
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """`function` of each item, in order, many requests at a time. The first error ends it."""
    if len(items) < 2:
        return [function(item) for item in items]
    pool = ThreadPoolExecutor(min(_THREADS, len(items)), thread_name_prefix="headers")
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)
