"""How kernels are compiled: cached on disk, without the GIL, IEEE arithmetic unless said otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba.extending import intrinsic

from arrowquant_dist.kernels.numba_private import compiled, is_interpreted

_TEXT = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
_SOURCES = hashlib.sha256(_TEXT).hexdigest()
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def kernel(function: Callable[..., Any]) -> Any:
    """A compiled function that allocates nothing and looks only at arrays that its caller holds.

    It goes without Numba's reference counts: counting each view of a row or group cost more than the work on it (int4
    rtn: 700 against 2,000 Mparam/s).
    """
    return _quiet(function) if is_interpreted() else compiled(function, _SOURCES, **_OPTIONS)


def any_order(function: Callable[..., Any]) -> Any:
    """A kernel of sums whose order, and whose fused multiply-adds, the compiler may choose: exact all the same (small
    integers), or metrics, which choose nothing."""
    fast = {"reassoc", "contract"}
    return function if is_interpreted() else compiled(function, _SOURCES, **_OPTIONS, fastmath=fast)


def instruction(twin: Callable[..., Any]) -> Any:
    """A decorator for what is made of LLVM's instructions: an intrinsic, or `twin`, the same in Python, where Numba
    compiles nothing."""
    return (lambda _: twin) if is_interpreted() else intrinsic


def _quiet(function: Callable[..., Any]) -> Any:
    """numpy's scalars warn of what machine words do without a word: dividing by 0, and carrying over."""
    return np.errstate(all="ignore")(function)


@any_order
def plus(total: np.float32, value: np.float32) -> np.float32:
    return total + value


@any_order
def plus_product(total: np.float32, left: np.float32, right: np.float32) -> np.float32:
    return total + left * right
