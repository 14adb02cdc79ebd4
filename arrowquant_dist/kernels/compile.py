"""How kernels are compiled: cached on disk, without the GIL, IEEE arithmetic unless said otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from arrowquant_dist.kernels.numba_private import compiled

_TEXT = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
_SOURCES = hashlib.sha256(_TEXT).hexdigest()


def kernel(function: Callable[..., Any]) -> Any:
    """A compiled function that allocates nothing and looks only at arrays that its caller holds.

    It goes without Numba's reference counts: counting each view of a row or group cost more than the work on it (int4
    rtn: 700 against 2,000 Mparam/s).
    """
    return compiled(function, _SOURCES, nogil=True, error_model="numpy")


def any_order(function: Callable[..., Any]) -> Any:
    """A kernel of sums whose order, and whose fused multiply-adds, the compiler may choose: exact all the same (small
    integers), or metrics, which choose nothing."""
    fast = {"reassoc", "contract"}
    return compiled(function, _SOURCES, nogil=True, error_model="numpy", fastmath=fast)


@any_order
def plus(total: np.float32, value: np.float32) -> np.float32:
    return total + value


@any_order
def plus_product(total: np.float32, left: np.float32, right: np.float32) -> np.float32:
    return total + left * right
