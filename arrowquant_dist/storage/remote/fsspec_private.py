"""The coroutines of fsspec's asynchronous file systems.

Written for fsspec 2026.9. Their names begin with an underscore (`_cat_file` beside `cat_file`), though its page on
asynchronous use documents them. A file system that lacks one, or an fsspec that names them otherwise, is called in a
thread by the public name: the same answers, and a request that runs into our time-out keeps its thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

_PREFIX = "_"


def coroutine_of(fs: Any, method: str) -> Callable[..., Awaitable[Any]] | None:
    """The asynchronous twin of a method of an asynchronous file system; None where it has none."""
    found: Callable[..., Awaitable[Any]] | None = getattr(fs, f"{_PREFIX}{method}", None)
    return found
