"""Draws an overview as one self-contained SVG, light or dark like the reader's system."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from arrowquant_dist.report.pictures.axes import DoublingScale, Scale, across, doubling, scale, upwards
from arrowquant_dist.report.pictures.pareto import beside_dots
from arrowquant_dist.report.pictures.svg import box, dot, line, number, polyline, quoted, words
from tests.benchmarks.overview.accuracy import CALIBRATED, OURS
from tests.benchmarks.overview.figures import Comparison, Curve, Overview, Spot
from tests.benchmarks.table import rate as figure

WIDTH = 1000
_MARGIN, _ROW, _NAMES = 24.0, 19.0, 470.0
_TALL, _SMALL = 400.0, 170.0
_STYLE = """
:root { --ground: #ffffff; --ink: #1b2330; --muted: #5a6473; --grid: #e1e5ea; --ours: #2458c5; --with: #1a7f4b;
  --peer: #c46a1b; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161d; --ink: #e3e8ef; --muted: #a0abba; --grid: #2c3542;
  --ours: #7aa5ff; --with: #5ccf93; --peer: #f0a060; } }
.ground { fill: var(--ground); } text { fill: var(--ink); font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; } .head { font-size: 15px; font-weight: 600; } .axis { fill: var(--muted); font-size: 11px; }
.part { fill: var(--muted); font-weight: 600; } .grid { stroke: var(--grid); fill: none; }
.even { stroke: var(--muted); stroke-width: 1.2; fill: none; } .bar { fill: var(--ours); } .less { fill: var(--peer); }
.spread { stroke: var(--ink); stroke-width: 1.4; fill: none; } .ours { fill: var(--ours); } .with { fill: var(--with); }
.peer { fill: var(--ground); stroke: var(--peer); stroke-width: 1.6; } .ours-line { stroke: var(--ours); fill: none;
  stroke-width: 1.5; } .with-line { stroke: var(--with); fill: none; stroke-width: 1.5; } .letter { font-size: 11px; }
"""


def picture(overview: Overview) -> str:
    """The picture: ratios with their spread, accuracy over bytes, and curves, one below the other."""
    parts, at = [], _MARGIN
    for panel in (_ratios(overview.comparisons, at),):
        svg, at = panel
        parts.append(svg)
    if overview.spots:
        svg, at = _accuracy(overview.spots, at + 16)
        parts.append(svg)
    if overview.curves:
        svg, at = _curves(overview.curves, at + 16)
        parts.append(svg)
    said = (
        f"{overview.date}, {overview.machine}; medians of {overview.rounds} rounds, lines from least to most"
    )
    parts.append(words(_MARGIN, at + 20, said, "axis"))
    height = number(at + 34)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{quoted("this program beside others")}"><style>{_STYLE}</style>'
    )
    return f"{head}{box(0, 0, WIDTH, at + 34, 'ground')}{''.join(parts)}</svg>\n"


def _ratios(comparisons: Sequence[Comparison], top: float) -> tuple[str, float]:
    known = [(row, row.ratio) for row in comparisons]
    spreads = [ratio for _, ratio in known if ratio is not None]
    lows, highs = [found.low for found in spreads], [found.high for found in spreads]
    along = doubling([min([0.5, *lows]), max([2.0, *highs])], _NAMES + 10, WIDTH - _MARGIN - 60)
    ticks = [10.0**power * factor for power in range(-2, 4) for factor in (1, 2, 5)]
    along = DoublingScale(
        along.low,
        along.high,
        along.start,
        along.stop,
        tuple(t for t in ticks if along.low <= t <= along.high),
    )
    drawn, y, part = (
        [words(_MARGIN, top + 6, "Times as fast as others, at the same work", "head")],
        top + 26,
        "",
    )
    first = y
    for row, ratio in known:
        if ratio is None:
            continue
        if row.part != part:
            part = row.part
            drawn.append(words(_MARGIN, y + 13, part, "part"))
            y += _ROW
        drawn.append(words(_NAMES, y + 13, _shortened(f"{row.name}  ·  {row.peer}", 76), "", "end"))
        start, stop = sorted((along.at(1.0), along.at(ratio.median)))
        said = f"{figure(ratio.median)}, {figure(ratio.low)} to {figure(ratio.high)}"
        drawn.append(
            box(start, y + 4, max(stop - start, 1), 11, "bar" if ratio.median >= 1 else "less", said)
        )
        drawn.append(line(along.at(ratio.low), y + 9.5, along.at(ratio.high), y + 9.5, "spread"))
        right = max(along.at(ratio.high), along.at(1.0))
        drawn.append(words(right + 6, y + 13, f"{figure(ratio.median)}×"))
        y += _ROW
    rules = [line(along.at(t), first, along.at(t), y, "even" if t == 1 else "grid") for t in along.ticks]
    drawn.append(across(along, lambda tick: f"{tick:g}×", y, WIDTH))
    return "".join([*rules, *drawn]), y + 24


def _accuracy(spots: Sequence[Spot], top: float) -> tuple[str, float]:
    """Stored bytes against 1 − mean cosine, on an axis where each step upwards halves that difference."""
    title = "all-MiniLM-L6-v2: weights in MB, and how far sentence embeddings are from the original's (1 − cosine)"
    left, right, bottom = _MARGIN + 46, WIDTH * 0.56, top + _TALL
    along = doubling([spot.nbytes / 1e6 for spot in spots], left + 12, right - 12)
    lost = {spot: max(1.0 - spot.cosine, 1e-6) for spot in spots}
    up = scale([-math.log10(value) for value in lost.values()], bottom - 8, top + 34)
    places = {spot: (along.at(spot.nbytes / 1e6), up.at(-math.log10(lost[spot]))) for spot in spots}
    ordered = sorted(spots, key=lambda spot: (spot.nbytes, -spot.cosine))
    letters = beside_dots([places[spot] for spot in ordered])
    drawn = [words(_MARGIN, top + 10, title, "head"), upwards(up, _lost, left, right)]
    drawn += [_line(OURS, "ours-line", ordered, places), _line(CALIBRATED, "with-line", ordered, places)]
    for k, (spot, at) in enumerate(zip(ordered, letters, strict=True), 1):
        drawn.append(dot(*places[spot], 4.5, _tone(spot), f"{spot.name}: {spot.cosine:.4f}"))
        drawn.append(words(*at, str(k), "letter", "middle"))
        text = f"{k}  {spot.name}, {spot.maker}: {spot.nbytes / 1e6:.2f} MB, {spot.cosine:.4f}"
        y = top + 26 + k * (_TALL - 20) / max(len(spots), 22)
        drawn.append(dot(right + 30, y - 4, 4, _tone(spot)))
        drawn.append(words(right + 40, y, _shortened(text, 66), "letter"))
    drawn.append(across(along, lambda tick: f"{tick:g}", bottom, WIDTH))
    drawn.append(words(right, bottom + 30, "MB of weights", "axis", "end"))
    return "".join(drawn), bottom + 36


def _line(maker: str, tone: str, spots: Sequence[Spot], places: dict[Spot, tuple[float, float]]) -> str:
    """A line that joins the spots whose size was asked for."""
    joined = [places[spot] for spot in spots if _family(spot) == maker and "--size" in spot.name]
    return polyline(joined, tone) if len(joined) > 1 else ""


def _tone(spot: Spot) -> str:
    return {OURS: "ours", CALIBRATED: "with"}.get(_family(spot), "peer")


def _family(spot: Spot) -> str:
    return CALIBRATED if spot.maker.startswith(CALIBRATED) else spot.maker


def _lost(power: float) -> str:
    return f"{10.0**-power:.1g}"


def _curves(curves: Sequence[Curve], top: float) -> tuple[str, float]:
    """The curves, three in a row."""
    drawn, columns = [words(_MARGIN, top + 10, "This program, int8", "head")], 3
    width = (WIDTH - 2 * _MARGIN) / columns
    lines = math.ceil(len(curves) / columns)
    for k, curve in enumerate(curves):
        left, above = _MARGIN + (k % columns) * width, top + 24 + (k // columns) * (_SMALL + 44)
        drawn.extend(_curve(curve, left, above, width))
    return "".join(drawn), top + 24 + lines * (_SMALL + 44)


def _curve(curve: Curve, left: float, top: float, width: float) -> Iterator[str]:
    start, stop, bottom = left + 46, left + width - 24, top + _SMALL
    values = [found for _, point in curve.points for found in (point.low, point.high)]
    up: Scale = scale([0.0, *values], bottom, top + 24, about=4)
    along = doubling([at for at, _ in curve.points], start + 4, stop - 4)
    yield words(left, top + 12, f"{curve.title}, {curve.unit}")
    yield upwards(up, lambda tick: f"{tick:g}", start, stop)
    spots = [(along.at(at), up.at(found.median)) for at, found in curve.points]
    yield polyline(spots, "ours-line")
    for (at, found), spot in zip(curve.points, spots, strict=True):
        yield line(spot[0], up.at(found.low), spot[0], up.at(found.high), "spread")
        yield dot(*spot, 3.5, "ours", f"{_amount(at)}: {figure(found.median)} {curve.unit}")
        yield words(spot[0], bottom + 15, _amount(at), "axis", "middle")
    yield words(stop, bottom + 29, curve.across, "axis", "end")


def _amount(value: float) -> str:
    return f"{value / 1e6:.0f} M" if value >= 1e6 else f"{value:g}"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
