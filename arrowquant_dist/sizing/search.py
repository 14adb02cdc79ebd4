"""Finds the step at which a figure that falls or grows with the step comes closest to its limit and keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_MOST_TRIES = 24
_CLOSE = 1e-4  # of a step: if both sides are so close, the figure jumps between them


@dataclass(frozen=True, slots=True)
class Tried(Generic[T]):
    """A step that was tried. excess: how far its figure is beyond the limit, at most 0 where it keeps it. found: what
    was made of it."""

    step: float
    excess: float
    found: T


def largest_within(
    at: Callable[[float], Tried[T]],
    first: float,
    bounds: tuple[float, float],
    near: float,
    *,
    falls: bool,
    tries: int = _MOST_TRIES,
) -> tuple[Tried[T] | None, Tried[T] | None]:
    """(the best try within the limit, the nearest beyond it) in steps of `bounds`; None where there is none at either
    bound.

    at: tries a step. first: step to begin with. falls: whether the excess falls with the step, or grows. near: an
    excess of at least -near is good enough. tries: maximum number of tries. It is the secant method over the step's
    logarithm, kept inside the bracket.
    """
    low, high = map(math.log, bounds)
    inner, outer = (high, low) if falls else (low, high)  # bounds with the least and the most excess
    within: Tried[T] | None = None
    beyond: Tried[T] | None = None
    place, moved = min(max(math.log(first), low), high), 0
    for _ in range(tries):
        tried = at(math.exp(place))
        if tried.excess <= 0.0:
            within = tried
            if tried.excess >= -near or place == outer:
                break
        else:
            beyond = tried
            if place == inner:
                break
        if within is not None and beyond is not None:
            one, two = math.log(within.step), math.log(beyond.step)
            if abs(one - two) < _CLOSE:
                break
            share = (within.excess + near / 2) / (within.excess - beyond.excess)
            place = one + min(max(share, 0.05), 0.95) * (two - one)
        else:
            place = _outwards(place, inner if within is None else outer, moved)
            moved += 1
    return within, beyond


def _outwards(place: float, bound: float, moved: int) -> float:
    """The next place toward `bound`: by a factor of 1.5, from the third move on each time by the square of the last
    factor, so that ten tries reach the bound; or the bound itself, where that is near."""
    move = math.copysign(math.log(1.5) * 2 ** max(0, moved - 1), bound - place)
    return bound if abs(bound - place) <= 2 * abs(move) else place + move
