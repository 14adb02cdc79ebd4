"""What the kernels use of Numba beyond its documented API (`njit`, `numba.extending.intrinsic`, llvmlite's `ir`).

Written for Numba 0.68. Where a later Numba has a name no more, the kernels are made without it, to the same results:

- `_nrt=False` leaves out reference counts. Without it kernels count each view of a row or group.
- `_cache` ties what is compiled to the text of all kernels. Without it what is compiled lies in a folder that is named
  by that text, and in none where there is no place to write: code of other kernels never runs.
- `make_array` gives the address of an array's values. Without it memory.py goes by index.
- `codegen` says for which CPU is compiled. Without it float16 is converted by integer arithmetic, as on CPUs that have
  no instruction for it.
- `event` tells when a kernel is compiled. Without it nobody is told.
- `arraymath` is what looks for a BLAS when it is imported. Without it the program starts half a second later.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from numba import config, njit

_CACHE, _COUNTS, _CODEGEN = "_cache", "_nrt", "codegen"
_FOLDER = Path(__file__).parent / "__pycache__"  # Numba's own choice, where the user did not make another


def compiled(function: Callable[..., Any], sources: str, **options: Any) -> Any:
    """`function` by njit, without reference counts, cached on disk for kernels whose text has the digest `sources`."""
    if _knows_counts():
        options[_COUNTS] = False
    dispatcher = njit(function, cache=True, **options)
    return dispatcher if _tie(dispatcher, sources) else _compiled_in_folder(function, sources, options)


@contextmanager
def when_compiling(on_start: Callable[[], None]) -> Iterator[None]:
    """Calls on_start for each function that this thread begins to compile meanwhile."""
    names = [_named("numba.core.event", name) for name in ("Listener", "register", "unregister")]
    if None in names:
        yield
        return
    listener_class, register, unregister = names
    thread = threading.get_ident()

    def tell(_listener: Any, _event: Any) -> None:
        if threading.get_ident() == thread:
            on_start()

    members = {"on_start": tell, "on_end": lambda _listener, _event: None}
    listener = type("Listener", (listener_class,), members)()
    register("numba:compile", listener)
    try:
        yield
    finally:
        unregister("numba:compile", listener)


def is_interpreted() -> bool:
    """Whether Numba leaves functions as they are, in Python (NUMBA_DISABLE_JIT=1)."""
    return bool(config.DISABLE_JIT)


def look_for_blas() -> None:
    """Numba imports scipy.linalg now or never; nothing where this Numba does so elsewhere."""
    with suppress(ImportError):
        import_module("numba.np.arraymath")


def has_pointers() -> bool:
    """Whether `data_pointer` and `nothing` work here."""
    context = _named("numba.core.base", "BaseContext")
    return hasattr(context, "make_array") and hasattr(context, "get_dummy_value")


def data_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """LLVM's pointer to the first value of an array; for an intrinsic's code."""
    return context.make_array(array_type)(context, builder, array).data


def nothing(context: Any) -> Any:
    """What an intrinsic's code gives back that returns no value."""
    return context.get_dummy_value()


def converts_halves(context: Any) -> bool:
    """Whether the CPU compiled for is known to have instructions for float16. Else LLVM calls functions of a library
    that isn't there, and ends the process: on an x86 without F16C, as many virtual machines are."""
    triple, features = _compiled_for(context)
    return triple.startswith(("aarch64", "arm64")) or "+f16c" in features


def has_wide_vectors(context: Any) -> bool:
    """Whether the CPU compiled for is known to have 32 vectors of 16 float32 numbers."""
    return "+avx512f" in _compiled_for(context)[1]


def _compiled_for(context: Any) -> tuple[str, list[str]]:
    """LLVM's triple, and the features of the CPU; "" and [] where Numba no longer says so."""
    magic_tuple = getattr(getattr(context, _CODEGEN, lambda: None)(), "magic_tuple", None)
    if magic_tuple is None:
        return "", []
    triple, _, features = magic_tuple()
    return triple, features.split(",")


@cache
def _knows_counts() -> bool:
    options = getattr(getattr(njit(has_pointers), "targetdescr", None), "options", None)
    return hasattr(options, _COUNTS)


def _tie(dispatcher: Any, sources: str) -> bool:
    """By itself Numba looks at the date of the one file that a function stands in, and goes on with old code when a
    function that it calls, in another file, has changed. False where it cannot be told otherwise.

    By itself it also numbers what a function is compiled to for each dtype. Two processes that compile it for different
    ones at once would take the same number, and each load the other's machine code: here no two names are equal.
    """
    file_of = _named("numba.core.caching", "IndexDataCacheFile")
    kept: Any = getattr(dispatcher, _CACHE, None)
    name = getattr(getattr(kept, "_impl", None), "filename_base", None)
    if file_of is None or name is None or not hasattr(kept, "_cache_file"):
        return False
    file = file_of(cache_path=kept.cache_path, filename_base=name, source_stamp=sources)
    file._data_name = lambda number: f"{name}.{secrets.token_hex(8)}.{number}.nbc"
    kept._cache_file = file
    return True


def _compiled_in_folder(function: Callable[..., Any], sources: str, options: dict[str, Any]) -> Any:
    before = config.CACHE_DIR
    config.CACHE_DIR = str(Path(before or _FOLDER) / f"kernels-{sources[:16]}")
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # nowhere to write: each process compiles for itself
        return njit(function, **options)
    finally:
        config.CACHE_DIR = before


def _named(module: str, name: str) -> Any:
    """None where this Numba has no such thing."""
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None
