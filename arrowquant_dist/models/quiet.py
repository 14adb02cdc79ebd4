"""Silences the bar and the table that transformers shows for a checkpoint. What it moves here has no values yet, so
"Loading weights: 100 %" would appear before anything is read, and what its LOAD REPORT warns about is either allowed or
refused by an error of our own.

Both are suppressed only for a thread that builds a model, and only while it does: bars by transformers' hook for them,
which is global but leaves other threads' bars alone, and the table by a filter of the logger. Disabling and re-enabling
bars instead would disable them for other threads, and enable them for users who had disabled them.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_Bar = Callable[..., Any]
_Hook = Callable[[_Bar, tuple[Any, ...], dict[str, Any]], Any]

_LOGGER = "transformers.modeling_utils"
_TABLE = "LOAD REPORT"
# The part of the table about a failed conversion: a traceback, the error, and which operation was to make what.
_FAILED = re.compile(r"\n(?P<error>[^\n]+)\nError:? ?(?P<operation>[^\n]+)")

_lock = threading.Lock()
_building: dict[int, int] = {}  # {thread: number of builds it is in}
_ours: list[Hook] = []  # the hook that is installed while any thread builds


class Hook:
    """Makes bars that show nothing for threads that build; other threads get the bars they would get without it.

    before: the hook that was installed earlier. A hook that somebody wraps around this one stays when this one is
    removed, and may still call it.
    """

    def __init__(self) -> None:
        self.before: _Hook | None = None

    def __call__(self, make: _Bar, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if threading.get_ident() in _building:
            return make(*args, **{**options, "disable": True})
        return make(*args, **options) if self.before is None else self.before(make, args, options)


class ReportFilter(logging.Filter):
    """Keeps the table that one thread logs out of the log. failed: the first failed conversion that it mentions."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self.failed: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if threading.get_ident() != self._thread or _TABLE not in str(record.msg):
            return True
        found = _FAILED.search(record.getMessage())
        if found is not None:
            self.failed = f"{found['error'].strip()}, in {found['operation'].strip()}"
        return False


@contextmanager
def without_account(table: ReportFilter) -> Iterator[None]:
    """Suppresses bars and the table while a model is built of tensors without values, for the thread of `table`."""
    logger = logging.getLogger(_LOGGER)
    thread = threading.get_ident()
    with _lock:
        if not _building:
            _hook_in()
        _building[thread] = _building.get(thread, 0) + 1
    logger.addFilter(table)
    try:
        yield
    finally:
        logger.removeFilter(table)
        with _lock:
            _building[thread] -= 1
            if not _building[thread]:
                del _building[thread]
            if not _building:
                _unhook()


def _hook_in() -> None:
    set_hook = _set_hook()
    if set_hook is not None:
        hook = Hook()
        hook.before = set_hook(hook)
        _ours.append(hook)


def _unhook() -> None:
    set_hook = _set_hook()
    if set_hook is not None:
        hook = _ours.pop()
        found = set_hook(hook.before)
        if found is not hook:  # somebody else has installed another hook meanwhile
            set_hook(found)


def _set_hook() -> Callable[[_Hook | None], _Hook | None] | None:
    """Returns transformers' function that sets the hook; None for early versions of 5, whose bar is shown."""
    from transformers.utils import logging as theirs

    found: Callable[[_Hook | None], _Hook | None] | None = getattr(theirs, "set_tqdm_hook", None)
    return found
