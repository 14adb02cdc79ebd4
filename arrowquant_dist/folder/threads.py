"""Runs many small requests concurrently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_THREADS = 16
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """`function` applied to each item, in order, with many requests at a time. The first error stops the rest."""
    if len(items) < 2:
        return [function(item) for item in items]
    pool = ThreadPoolExecutor(min(_THREADS, len(items)), thread_name_prefix="headers")
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)
