"""transformers without the bar and the table that it shows of a checkpoint: what it moves here has no values yet, so
"Loading weights: 100 %" stands there before anything is read, and what its LOAD REPORT warns of is either allowed or
refused by an error of ours.

Both are kept from the thread that builds a model, while it does, and from no other: bars by transformers' hook for
them, which is there once for all threads and leaves alone what the others make, and the table by a filter of the
logger. Switching bars off and on again instead would switch them off for others, and on for who had them off.
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
# In the table, of a conversion that failed: a traceback, the error, and which operation was to make what.
_FAILED = re.compile(r"\n(?P<error>[^\n]+)\nError:? ?(?P<operation>[^\n]+)")

_lock = threading.Lock()
_building: dict[int, int] = {}  # {thread: how often it builds}
_ours: list[Hook] = []  # the hook that is there while somebody builds


class Hook:
    """Bars that show nothing for threads that build; others get what they would have without it.

    before: the hook that was there. One that somebody put around ours stays when ours ends, and asks it on.
    """

    def __init__(self) -> None:
        self.before: _Hook | None = None

    def __call__(self, make: _Bar, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if threading.get_ident() in _building:
            return make(*args, **{**options, "disable": True})
        return make(*args, **options) if self.before is None else self.before(make, args, options)


class ReportFilter(logging.Filter):
    """Keeps the table that one thread writes from the log. failed: the first conversion that failed, by the table."""

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
    """While a model is built of tensors without values: no bar, and no table in the log. For the thread of `table`."""
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
        if found is not hook:  # somebody else's by now
            set_hook(found)


def _set_hook() -> Callable[[_Hook | None], _Hook | None] | None:
    """Of transformers; its first versions of 5 have none, and show their bar."""
    from transformers.utils import logging as theirs

    found: Callable[[_Hook | None], _Hook | None] | None = getattr(theirs, "set_tqdm_hook", None)
    return found
