"""Axes: where a value is on a picture, and the labels at its edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from arrowquant_dist.report.pictures.svg import WIDTH, line, words

LEFT, RIGHT, TOP, BOTTOM = 40.0, WIDTH - 10.0, 10.0, 200.0
HEIGHT = 238.0
_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"))
_CHARACTER, _BETWEEN = 7.4, 8.0  # width of a label's character, and room between labels
_LEAST_TICKS = 3


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from `low` to `high` to places from `start` to `stop`. ticks: values that are labelled."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def scale(values: Iterable[float], start: float, stop: float, about: int = 5) -> Scale:
    """A scale from a round number at or below the least of `values` to one at or above the largest. about: wanted
    number of steps."""
    known = list(values)
    low, high = min(known), max(known)
    if low == high:
        around = 0.05 * abs(low) or 0.5
        low, high = low - around, high + around
    step = round_step((high - low) / about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, stop, ticks)


def counts(most: int, start: float, stop: float) -> Scale:
    """A scale from 0 to `most` or a little more, in whole steps."""
    step = round_step(max(most / 4, 1.0))
    whole = 5 if step == 2.5 else int(step)
    ticks = tuple(float(tick) for tick in range(0, most + whole, whole))
    return Scale(0.0, ticks[-1], start, stop, ticks)


@dataclass(frozen=True, slots=True)
class DoublingScale:
    """As Scale, but every doubling takes the same room. Values must be above 0."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        part = math.log2(value / self.low) / math.log2(self.high / self.low)
        return self.start + part * (self.stop - self.start)


def doubling(values: Iterable[float], start: float, stop: float) -> DoublingScale:
    """A scale from a tenth below the least of `values` to a tenth above the largest. Ticks are at 1, 1.5, 2, 3, 4, 6, 8
    and so on, or at round numbers if fewer than _LEAST_TICKS of these are in the range."""
    known = list(values)
    low, high = min(known) / 1.1, max(known) * 1.1
    powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    ticks = tuple(2.0**power * factor for power in powers for factor in (1.0, 1.5))
    within = tuple(tick for tick in ticks if low <= tick <= high)
    if len(within) < _LEAST_TICKS:
        within = round_ticks(low, high)
    return DoublingScale(low, high, start, stop, within)


def time_axis(seconds: float, start: float, stop: float) -> tuple[Scale, str]:
    """A scale from 0 to exactly `seconds`, and the name of the unit of its values."""
    unit, name = next((one for one in _UNITS if seconds <= 180 * one[0]), _UNITS[-1])
    length = seconds / unit
    step = round_step(length / 5)
    ticks = tuple(index * step for index in range(math.floor(length / step + 1e-9) + 1))
    return Scale(0.0, length, start, stop, ticks), name


def round_ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Round numbers from `low` to `high`, none outside of this range."""
    step = round_step((high - low) / about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def round_step(step: float) -> float:
    """The least number that is 1, 2, 2.5 or 5 times a power of ten and not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((power * factor for factor in (1.0, 2.0, 2.5, 5.0) if power * factor >= step), power * 10.0)


def across(
    scale: Scale | DoublingScale, form: Callable[[float], str], bottom: float = BOTTOM, width: float = WIDTH
) -> str:
    """The labels below a horizontal axis. width: of the picture."""
    return "".join(below(scale.at(tick), bottom + 15, form(tick), width) for tick in scale.ticks)


def below(x: float, y: float, figure: str, width: float = WIDTH) -> str:
    """A label centred at x, or as near to it as the right edge of a picture of this width allows."""
    return words(min(x, width - _CHARACTER * len(figure) / 2), y, figure, "axis", "middle")


def upwards(scale: Scale, form: Callable[[float], str], left: float = LEFT, right: float = RIGHT) -> str:
    """The labels to the left of a vertical axis, with a grid line for each."""
    return "".join(
        line(left, scale.at(tick), right, scale.at(tick), "grid")
        + words(left - 6, scale.at(tick) + 4, form(tick), "axis", "end")
        for tick in scale.ticks
    )


def plain(value: float) -> str:
    """The usual form of a label."""
    return f"{value:g}"


def called(below: str, beside: str, bottom: float = BOTTOM) -> str:
    """The names of the axes. below: of the horizontal one, at its right end. beside: of the vertical one, above it."""
    return words(RIGHT, bottom + 32, below, "axis", "end") + words(4, TOP - 1, beside, "axis")


def whole_ticks(first: int, last: int, room: float) -> tuple[int, ...]:
    """Whole numbers from `first` to `last`: all, or round ones if there is no room for all labels side by side."""
    most = max(int(room / _taken(last)), 1)
    if last - first < most:
        return tuple(range(first, last + 1))
    step = max(round(round_step((last - first) / most)), 1)
    return tuple(range(-(-first // step) * step, last + 1, step)) or (first,)


def thinned(labels: Sequence[int], room: float) -> tuple[int, ...]:
    """As many of the rising numbers `labels` as there is room for side by side, evenly spread."""
    most = max(int(room / _taken(labels[-1])), 1)
    return tuple(labels[:: math.ceil(len(labels) / most)])


def _taken(figure: int) -> float:
    return _CHARACTER * len(str(figure)) + _BETWEEN
