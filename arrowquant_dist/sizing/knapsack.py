"""One option for each layer: bytes that a choice leaves unused are spent on other options with less error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """A way to store a layer. error: what it adds to the sum, ≥ 0. nbytes: size of the layer."""

    error: float
    nbytes: int


def exchanged(
    options: Mapping[str, Sequence[Option]], chosen: Mapping[str, int], room: int
) -> dict[str, int]:
    """`chosen` after exchanges of single options, each time the one with the largest gain that fits. chosen: {name:
    index of its option}, which fits into `room` bytes."""
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
