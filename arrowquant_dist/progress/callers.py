"""What `progress` means where a function of ours is called in Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO, TypeVar

from arrowquant_dist.config.checks import shown
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.progress.forms import TellingForm, callers_form

Callback = TypeVar("Callback", bound=Callable[..., object])
Shown_co = TypeVar("Shown_co", bound=Callable[..., object], covariant=True)


class Drawing(Protocol[Shown_co]):
    """`shown_progress`, or what is like it."""

    def __call__(self, out: TextIO, verb: str, form: TellingForm, /) -> AbstractContextManager[Shown_co]: ...


@contextmanager
def told_to(
    progress: Callback | bool | None,  # noqa: FBT001 - a value of theirs
    drawing: Drawing[Callback],
    verb: str,
) -> Iterator[Callback | None]:
    """What is called with each event: the caller's function, or what draws for a caller in a terminal or a notebook.

    progress: a function; True: drawn where somebody sees it, which is nowhere in a job or behind a pipe; False, None:
    nothing. InvalidConfig for anything else.
    """
    if isinstance(progress, bool) or progress is None:
        form = callers_form() if progress else "none"
        if form == "none":
            yield None
            return
        with drawing(sys.stderr, verb, form) as show:
            yield show
        return
    if not callable(progress):
        raise InvalidConfig(f"progress is {shown(progress)}; give True, False, or a function to call")
    yield progress
