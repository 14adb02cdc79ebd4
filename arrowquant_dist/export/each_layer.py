"""Something of each of a dataset's layers, read by several threads, as what an export is planned by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.storage.base import Store

T = TypeVar("T")

_FAR_AT_ONCE = 8  # layers: a store far away answers so many requests in the time of one
_NEAR_AT_ONCE = 2  # more threads wait for each other


@contextmanager
def reading_each(
    store: Store, layers: Iterable[StoredLayer], read: Callable[[StoredLayer], T]
) -> Iterator[Callable[[], dict[str, T]]]:
    """Reads meanwhile: what is yielded waits for all, by layers' names, and raises what the first one raised. store:
    where they are."""
    every = {layer.name: layer for layer in layers}
    threads = ThreadPoolExecutor(_NEAR_AT_ONCE if store.is_near else _FAR_AT_ONCE)
    try:
        found = threads.map(read, every.values())
        yield lambda: dict(zip(every, found, strict=True))
    finally:
        threads.shutdown(cancel_futures=True)
