"""How kernels are compiled: cached on disk, without the GIL, with IEEE arithmetic unless stated otherwise."""

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
    """Compiles a function that allocates nothing and only accesses arrays that its caller holds.

    So it needs no reference counts of Numba's: counting each view of a row or group cost more than the work on it (int4
    rtn: 700 instead of 2,000 Mparam/s).
    """
    return _quiet(function) if is_interpreted() else compiled(function, _SOURCES, **_OPTIONS)


def any_order(function: Callable[..., Any]) -> Any:
    """Compiles a kernel of sums in which the compiler may choose the order and use fused multiply-adds: sums that are
    exact anyway (of small integers), or metrics, on which no choice depends."""
    fast = {"reassoc", "contract"}
    return function if is_interpreted() else compiled(function, _SOURCES, **_OPTIONS, fastmath=fast)


def instruction(twin: Callable[..., Any]) -> Any:
    """A decorator for functions that consist of LLVM instructions: makes an intrinsic, or, if Numba compiles nothing,
    replaces it by `twin`, the same in Python."""
    return (lambda _: twin) if is_interpreted() else intrinsic


def _quiet(function: Callable[..., Any]) -> Any:
    """Silences numpy's scalars, which warn where machine words do not: on division by 0 and overflow."""
    return np.errstate(all="ignore")(function)


@any_order
def plus(total: np.float32, value: np.float32) -> np.float32:
    return total + value


@any_order
def plus_product(total: np.float32, left: np.float32, right: np.float32) -> np.float32:
    return total + left * right
