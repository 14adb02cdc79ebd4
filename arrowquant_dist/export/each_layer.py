"""Reads something of each layer of a dataset in several threads, to plan an export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.storage.base import Store

T = TypeVar("T")

_FAR_AT_ONCE = 8  # layers: a remote store answers this many requests in the time of one
_NEAR_AT_ONCE = 2  # with more, threads wait for each other


@contextmanager
def reading_each(
    store: Store, layers: Iterable[StoredLayer], read: Callable[[StoredLayer], T]
) -> Iterator[Callable[[], dict[str, T]]]:
    """Reads in the background. Yields a function that waits for all results, {layer's name: result}, and raises the
    first error. store: where the layers are."""
    every = {layer.name: layer for layer in layers}
    threads = ThreadPoolExecutor(_NEAR_AT_ONCE if store.is_near else _FAR_AT_ONCE)
    try:
        found = threads.map(read, every.values())
        yield lambda: dict(zip(every, found, strict=True))
    finally:
        threads.shutdown(cancel_futures=True)
