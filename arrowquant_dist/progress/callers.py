"""The meaning of the argument `progress` of public functions."""

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
    """`shown_progress` or a similar function."""

    def __call__(self, out: TextIO, verb: str, form: TellingForm, /) -> AbstractContextManager[Shown_co]: ...


@contextmanager
def told_to(
    progress: Callback | bool | None,  # noqa: FBT001 - a value of theirs
    drawing: Drawing[Callback],
    verb: str,
) -> Iterator[Callback | None]:
    """The function to call with each event: the caller's, or one that draws in a terminal or a notebook; None for none.

    progress: a function; True: draw where somebody sees it, so not in a job or behind a pipe; False, None: nothing.
    Raises InvalidConfig for anything else.
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
