"""The coroutines of fsspec's asynchronous file systems.

Written for fsspec 2026.9. Their names begin with an underscore (`_cat_file` beside `cat_file`), though fsspec's page
on asynchronous use documents them. If a file system lacks one, or fsspec renames them, the public method is called in
a thread: the results are the same, but a request that exceeds our time-out keeps its thread busy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

_PREFIX = "_"


def coroutine_of(fs: Any, method: str) -> Callable[..., Awaitable[Any]] | None:
    """The asynchronous counterpart of a file system's method; None if there is none."""
    found: Callable[..., Awaitable[Any]] | None = getattr(fs, f"{_PREFIX}{method}", None)
    return found
