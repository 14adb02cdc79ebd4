"""Errors of layers: by depth, against stored bits, and as a histogram."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.layer_types import LAYER_TYPES
from arrowquant_dist.report import text
from arrowquant_dist.report.depth import depth
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.pictures.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Scale,
    across,
    called,
    counts,
    doubling,
    plain,
    round_step,
    round_ticks,
    scale,
    upwards,
    whole_ticks,
)
from arrowquant_dist.report.pictures.svg import Picture, box, dot, drawing, specks, words

_NAMED = 200  # dots that name their layer, at most; those with the most noise do
_SQNR = "SQNR, dB"
_WIDE = 4.0  # times the least stored bits; if the most are above that, every doubling takes the same room


def by_depth(rows: Sequence[LayerRow]) -> Picture | None:
    """The error of each quantized layer as a dot above the number of its block, or at the left for layers outside of
    blocks. None if no layer has noise."""
    noisy = _noisy(rows)
    if not noisy:
        return None
    depths = {row.layer_name: depth(row.layer_name) for row in noisy}
    blocks = sorted({block for block in depths.values() if block is not None})
    outside = any(block is None for block in depths.values())
    left = LEFT + (28 if outside else 8)
    low, high = (blocks[0], blocks[-1]) if blocks else (0, 0)
    along = Scale(low, max(high, low + 1), left, RIGHT - 8, whole_ticks(low, high, RIGHT - left))

    def place(row: LayerRow) -> float:
        block = depths[row.layer_name]
        return along.at(block) if block is not None else LEFT + 10

    below = across(along, plain) if blocks else ""
    below += words(LEFT + 10, BOTTOM + 15, "–", "axis", "middle") if outside else ""
    title = "Error by layer and depth"
    caption = "Higher is better."
    if outside:
        caption += " Layers outside of blocks are at “–”."
    return _scatter(title, noisy, rows, place, below, "block", caption)


def by_bits(rows: Sequence[LayerRow]) -> Picture | None:
    """Each quantized layer as a dot, by its stored bits per value, scales included, and its SQNR. None if no layer has
    noise."""
    noisy = [row for row in _noisy(rows) if row.stored_bits is not None]
    if not noisy:
        return None
    bits = [row.stored_bits or 0.0 for row in noisy]
    is_wide = 0 < _WIDE * min(bits) < max(bits)
    along = (doubling if is_wide else scale)(bits, LEFT + 8, RIGHT - 8)
    title, caption = "Stored bits against error", "One more bit is worth about 6 dB."
    return _scatter(
        title,
        noisy,
        rows,
        lambda row: along.at(row.stored_bits or 0.0),
        across(along, plain),
        "stored bits a value",
        caption,
    )


def histogram(rows: Sequence[LayerRow]) -> Picture | None:
    """A histogram of the SQNR of quantized layers, whose steps depend on the data. None if no layer has noise."""
    noisy = _noisy(rows)
    if not noisy:
        return None
    low, step, found = bins([row.sqnr_db or 0.0 for row in noisy])
    high = low + step * len(found)
    along = Scale(low, high, LEFT, RIGHT, round_ticks(low, high))
    up = counts(max(found), BOTTOM, TOP + 8)
    width = (RIGHT - LEFT) / len(found)
    bars = [
        box(
            LEFT + index * width + 0.5,
            up.at(count),
            width - 1,
            BOTTOM - up.at(count),
            "stored",
            f"{low + index * step:g} to {low + (index + 1) * step:g} dB: {counted(count, 'layer')}",
        )
        for index, count in enumerate(found)
        if count
    ]
    title = "Layers by their error"
    parts = [upwards(up, plain), *bars, across(along, plain), called(_SQNR, "layers")]
    return Picture(title, drawing(title, HEIGHT, parts, _range(noisy)), caption=_left_out(rows, noisy))


def bins(values: Sequence[float]) -> tuple[float, float, list[int]]:
    """Lower end, step and counts of a histogram. The step follows the Freedman–Diaconis rule (twice the interquartile
    range over the cube root of the number of values), is limited to between a fortieth and a quarter of the range, and
    is rounded up to a round number. If all values are equal, there is one bin."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if high - low < 1e-9:
        return math.floor(low), 1.0, [len(ordered)]
    middle = ordered[(3 * len(ordered)) // 4] - ordered[len(ordered) // 4]
    wanted = 2 * middle / len(ordered) ** (1 / 3)
    step = round_step(min(max(wanted, (high - low) / 40), (high - low) / 4))
    first = math.floor(low / step)
    counts = [0] * (math.floor(high / step) - first + 1)
    for value in ordered:
        counts[math.floor(value / step) - first] += 1
    return first * step, step, counts


def _scatter(
    title: str,
    noisy: Sequence[LayerRow],
    rows: Sequence[LayerRow],
    place: Callable[[LayerRow], float],
    below: str,
    along: str,
    caption: str,
) -> Picture:
    up = scale([row.sqnr_db or 0.0 for row in noisy], BOTTOM - 6, TOP + 8)
    worst = sorted(noisy, key=lambda row: row.sqnr_db or 0.0)
    dots = [
        dot(place(row), up.at(row.sqnr_db or 0.0), 3.2, row.layer_type, _told(row))
        for row in reversed(worst[:_NAMED])
    ]
    types = [name for name in LAYER_TYPES if any(row.layer_type == name for row in noisy)]
    many = [
        specks(
            ((place(row), up.at(row.sqnr_db or 0.0)) for row in worst[_NAMED:] if row.layer_type == name),
            name,
        )
        for name in types
    ]
    parts = [upwards(up, plain), *many, *dots, below, called(along, _SQNR)]
    left_out = _left_out(rows, noisy)
    return Picture(
        title,
        drawing(title, HEIGHT, parts, _range(noisy)),
        tuple((name, name) for name in types),
        f"{caption} {left_out}".strip(),
    )


def _range(noisy: Sequence[LayerRow]) -> str:
    worst, best = (pick(row.sqnr_db or 0.0 for row in noisy) for pick in (min, max))
    return f"{counted(len(noisy), 'layer')}, SQNR from {text.decibel(worst)} to {text.decibel(best)}"


def _noisy(rows: Sequence[LayerRow]) -> list[LayerRow]:
    return [row for row in rows if row.noise_db is not None]


def _left_out(rows: Sequence[LayerRow], shown: Sequence[LayerRow]) -> str:
    """A sentence that says how many quantized layers have no noise to show; empty if all have."""
    without = sum(row.is_quantized for row in rows) - len(shown)
    return (
        f"Not shown: {counted(without, 'quantized layer')} without any error, or whose error is not known."
        if without
        else ""
    )


def _told(row: LayerRow) -> str:
    bits = f", {row.stored_bits:.2f} bits a value" if row.stored_bits is not None else ""
    return f"{row.layer_name}: {text.decibel(row.sqnr_db)}{bits}"
