"""Where a figure stands on a picture, and what is written at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from arrowquant_dist.report.pictures.svg import WIDTH, line, words

LEFT, RIGHT, TOP, BOTTOM = 40.0, WIDTH - 10.0, 10.0, 200.0
HEIGHT = 238.0
_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"))


@dataclass(frozen=True, slots=True)
class Scale:
    """Figures from `low` to `high` between the places `start` and `stop`; ticks: figures that are written."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def scale(values: Iterable[float], start: float, stop: float, about: int = 5) -> Scale:
    """From a round figure below the least of `values` to one above the largest."""
    known = list(values)
    low, high = min(known), max(known)
    if low == high:
        low, high = low - 0.5, high + 0.5
    step = round_step((high - low) / about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, stop, ticks)


@dataclass(frozen=True, slots=True)
class DoublingScale:
    """As Scale, but every doubling takes the same room. Figures are above 0."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        part = math.log2(value / self.low) / math.log2(self.high / self.low)
        return self.start + part * (self.stop - self.start)


def doubling(values: Iterable[float], start: float, stop: float) -> DoublingScale:
    """From a tenth below the least of `values` to one above the largest; ticks are 1, 1.5, 2, 3, 4, 6, 8 and so on."""
    known = list(values)
    low, high = min(known) / 1.1, max(known) * 1.1
    powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    ticks = tuple(2.0**power * factor for power in powers for factor in (1.0, 1.5))
    return DoublingScale(low, high, start, stop, tuple(tick for tick in ticks if low <= tick <= high))


def time_axis(seconds: float, start: float, stop: float) -> tuple[Scale, str]:
    """From 0 to `seconds` and no farther, and the unit that its figures are in."""
    unit, name = next((one for one in _UNITS if seconds <= 180 * one[0]), _UNITS[-1])
    length = seconds / unit
    step = round_step(length / 5)
    ticks = tuple(index * step for index in range(math.floor(length / step + 1e-9) + 1))
    return Scale(0.0, length, start, stop, ticks), name


def round_step(step: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((power * factor for factor in (1.0, 2.0, 2.5, 5.0) if power * factor >= step), power * 10.0)


def across(scale: Scale | DoublingScale, form: Callable[[float], str], bottom: float = BOTTOM) -> str:
    """What is written below, each figure under its place."""
    return "".join(words(scale.at(tick), bottom + 15, form(tick), "axis", "middle") for tick in scale.ticks)


def upwards(scale: Scale, form: Callable[[float], str], left: float = LEFT, right: float = RIGHT) -> str:
    """What is written at the left, with a line across for each figure."""
    return "".join(
        line(left, scale.at(tick), right, scale.at(tick), "grid")
        + words(left - 6, scale.at(tick) + 4, form(tick), "axis", "end")
        for tick in scale.ticks
    )


def plain(value: float) -> str:
    """A figure at an axis."""
    return f"{value:g}"


def called(below: str, beside: str, bottom: float = BOTTOM) -> str:
    """What the axes are: below on the right, beside above the left one."""
    return words(RIGHT, bottom + 32, below, "axis", "end") + words(4, TOP - 1, beside, "axis")


def thinned(labels: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` of them, evenly spread."""
    step = max(1, math.ceil(len(labels) / most))
    return tuple(labels[::step])
