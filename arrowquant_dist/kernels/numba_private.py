"""What the kernels use of Numba beyond its documented API (`njit`, `numba.extending.intrinsic`, llvmlite's `ir`).

Written for Numba 0.68. If a later Numba lacks one of these names, kernels are compiled without it, with the same
results:

- `_nrt=False` leaves out reference counts. Without it kernels count each view of a row or group.
- `_cache` ties compiled code to the text of all kernels. Without it compiled code is in a folder named by a digest of
  that text, or not cached if no folder is writable: code of other versions of the kernels never runs.
- `make_array` gives the address of an array's values. Without it memory.py accesses bytes by index.
- `codegen` says which CPU code is compiled for. Without it float16 is converted by integer arithmetic, as on CPUs that
  have no instruction for it.
- `event` tells when a kernel is compiled. Without it nobody is told.
- `arraymath` is the module that looks for a BLAS on import. Without it the program starts half a second later.
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
_FOLDER = Path(__file__).parent / "__pycache__"  # Numba's own choice, unless the user has set another


def compiled(function: Callable[..., Any], sources: str, **options: Any) -> Any:
    """`function` compiled by njit, without reference counts, and cached on disk. sources: digest of the text of all
    kernels, for which the cached code is valid."""
    if _knows_counts():
        options[_COUNTS] = False
    dispatcher = njit(function, cache=True, **options)
    return dispatcher if _tie(dispatcher, sources) else _compiled_in_folder(function, sources, options)


@contextmanager
def when_compiling(on_start: Callable[[], None]) -> Iterator[None]:
    """A context in which on_start is called for each function that this thread begins to compile."""
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
    """Whether Numba leaves functions uncompiled, in Python (NUMBA_DISABLE_JIT=1)."""
    return bool(config.DISABLE_JIT)


def look_for_blas() -> None:
    """Makes Numba try to import scipy.linalg now, which it tries only once. If a caller hides that module meanwhile,
    Numba never imports it. Does nothing if this Numba imports it elsewhere."""
    with suppress(ImportError):
        import_module("numba.np.arraymath")


def has_pointers() -> bool:
    """Whether `data_pointer` and `nothing` work here."""
    context = _named("numba.core.base", "BaseContext")
    return hasattr(context, "make_array") and hasattr(context, "get_dummy_value")


def data_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """LLVM's pointer to the first value of an array, for the code of an intrinsic."""
    return context.make_array(array_type)(context, builder, array).data


def nothing(context: Any) -> Any:
    """What the code of an intrinsic without a return value returns."""
    return context.get_dummy_value()


def converts_halves(context: Any) -> bool:
    """Whether the CPU that code is compiled for is known to have instructions for float16. If it has none (an x86
    without F16C, as many virtual machines are), LLVM would call functions of a library that is not there, which ends
    the process."""
    triple, features = _compiled_for(context)
    return triple.startswith(("aarch64", "arm64")) or "+f16c" in features


def has_wide_vectors(context: Any) -> bool:
    """Whether the CPU that code is compiled for is known to have 32 vector registers of 16 float32 numbers."""
    return "+avx512f" in _compiled_for(context)[1]


def _compiled_for(context: Any) -> tuple[str, list[str]]:
    """(LLVM's triple, features of the CPU); ("", []) if this Numba does not tell."""
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
    """Makes the cache depend on the text of all kernels. Returns False if this Numba does not allow that.

    By default Numba looks at the date of the one file that contains a function, and uses old code when a function that
    it calls, in another file, has changed.

    By default it also numbers the compiled variants of a function for each dtype. Two processes that compile it for
    different dtypes at once would take the same number, and each would load the other's machine code: here each name is
    unique.
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
    """An attribute of a module; None if this Numba does not have it."""
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None
