"""How kernels are compiled: cached on disk, without the GIL, IEEE arithmetic unless said otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core.caching import IndexDataCacheFile

_SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))))


def _cached(dispatcher: Any) -> Any:
    """Ties the kernel's cache to the text of all kernels. By itself Numba looks at the date of the one file that a
    function stands in, and goes on with old code when a function that it calls, in another file, has changed."""
    cache = dispatcher._cache
    cache._cache_file = IndexDataCacheFile(
        cache_path=cache.cache_path,
        filename_base=cache._impl.filename_base,
        source_stamp=_SOURCES.hexdigest(),
    )
    return dispatcher


def kernel(function: Callable[..., Any]) -> Any:
    """A compiled function that allocates nothing and looks only at arrays that its caller holds.

    It goes without Numba's reference counts: counting each view of a row or group cost more than the work on it (int4
    rtn: 700 against 2,000 Mparam/s).
    """
    return _cached(njit(function, cache=True, nogil=True, error_model="numpy", _nrt=False))


def any_order(function: Callable[..., Any]) -> Any:
    """A kernel of sums whose order, and whose fused multiply-adds, the compiler may choose: exact all the same (small
    integers), or metrics, which choose nothing."""
    fast = {"reassoc", "contract"}
    return _cached(njit(function, cache=True, nogil=True, error_model="numpy", fastmath=fast, _nrt=False))


@any_order
def plus(total: np.float32, value: np.float32) -> np.float32:
    return total + value


@any_order
def plus_product(total: np.float32, left: np.float32, right: np.float32) -> np.float32:
    return total + left * right
