"""The step at which a figure that falls, or grows, with the step comes nearest to what is asked for, and keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_MOST_TRIES = 24
_CLOSE = 1e-4  # of a step: where both sides are so near, what is between them is a jump


@dataclass(frozen=True, slots=True)
class Tried(Generic[T]):
    """excess: by how much what is found is beyond what is asked for; it may have at most 0."""

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
    """(the best within, the nearest beyond it) in steps of `bounds`; None where there is none at either bound.

    at: tries a step. falls: whether the excess falls with the step, else it grows. near: an excess of at least -near is
    good enough. Secants over the step's logarithm, kept inside of the bracket.
    """
    low, high = map(math.log, bounds)
    inner, outer = (high, low) if falls else (low, high)  # where the excess is least, and most
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
    """By a factor of 1.5, from the third move on each time by the square of the last, so that ten tries come to the
    bound; or to that."""
    move = math.copysign(math.log(1.5) * 2 ** max(0, moved - 1), bound - place)
    return bound if abs(bound - place) <= 2 * abs(move) else place + move
