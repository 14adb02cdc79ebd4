"""One option a layer, so that the sum of errors is least and the sum of bytes within a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Option:
    """error: what the layer then adds to the sum, ≥ 0. nbytes: what it then takes."""

    error: float
    nbytes: int


def least_error(options: Mapping[str, Sequence[Option]], room: int) -> dict[str, int] | None:
    """{name: index of its option}; None where even the smallest options take more than `room` bytes.

    Lagrange: from each layer's smallest option on, the step of all layers that takes off most error by byte comes next,
    which is the best choice of all at each sum that it passes. What does not fit is left out and the others go on;
    what room is left then goes to single exchanges. So the error is at most one layer's step above the least.
    """
    ordered = {
        name: sorted(range(len(each)), key=lambda i: (each[i].nbytes, each[i].error))
        for name, each in options.items()
    }
    chosen = {name: order[0] for name, order in ordered.items()}
    left = room - sum(options[name][index].nbytes for name, index in chosen.items())
    if left < 0:
        return None
    steps = []
    for name, order in ordered.items():
        hull = _hull([options[name][index] for index in order])
        for place, (before, after) in enumerate(pairwise(hull)):
            one, two = options[name][order[before]], options[name][order[after]]
            gain = (one.error - two.error) / (two.nbytes - one.nbytes)
            steps.append((-gain, name, place, order[after], two.nbytes - one.nbytes))
    stopped = set()
    for _, name, _, index, nbytes in sorted(steps):
        if name in stopped or nbytes > left:
            stopped.add(name)
            continue
        chosen[name] = index
        left -= nbytes
    return exchanged(options, chosen, room)


def _hull(options: Sequence[Option]) -> list[int]:
    """Of options by ascending bytes: those on the lower convex hull of error over bytes, from the smallest on."""
    hull: list[int] = []
    for index, option in enumerate(options):
        if hull and option.error >= options[hull[-1]].error:
            continue
        if hull and option.nbytes == options[hull[-1]].nbytes:
            hull.pop()
        while len(hull) > 1 and _slope(options[hull[-2]], options[hull[-1]]) <= _slope(
            options[hull[-1]], option
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(one: Option, two: Option) -> float:
    return (one.error - two.error) / (two.nbytes - one.nbytes)


def exchanged(
    options: Mapping[str, Sequence[Option]], chosen: Mapping[str, int], room: int
) -> dict[str, int]:
    """`chosen`, {name: index of its option}, which fits into `room` bytes, after the largest gains that fit too, one
    after the other."""
    found = dict(chosen)
    left = room - sum(options[name][index].nbytes for name, index in found.items())
    while True:
        best = None
        for name, index in found.items():
            now = options[name][index]
            for other, option in enumerate(options[name]):
                gain = now.error - option.error
                if gain > 0.0 and option.nbytes - now.nbytes <= left and (best is None or gain > best[0]):
                    best = (gain, name, other, option.nbytes - now.nbytes)
        if best is None:
            return found
        _, name, other, nbytes = best
        found[name] = other
        left -= nbytes
