"""Datasets by size and quality. Those on the line are not beaten by any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from arrowquant_dist.report.pictures.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    across,
    called,
    doubling,
    plain,
    scale,
    upwards,
)
from arrowquant_dist.report.pictures.svg import Picture, dot, drawing, polyline, words

Spot = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """A dataset. letter: its letter on the picture. name: its name. bits: stored bits per value. good: its quality;
    higher is better."""

    letter: str
    name: str
    bits: float
    good: float


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, by rising bits. Equal points do not beat each other."""
    best = [point for point in points if beaten_by(point, points) is None]
    return sorted(best, key=lambda point: point.bits)


def beaten_by(point: Point, points: Sequence[Point]) -> Point | None:
    """The best of the points that have no more bits and are no worse, and that are better in one of both; None if there
    is none."""
    better = [
        other
        for other in points
        if other.bits <= point.bits
        and other.good >= point.good
        and (other.bits, other.good) != (point.bits, point.good)
    ]
    return max(better, key=lambda other: (other.good, -other.bits)) if better else None


def pareto(title: str, good: str, points: Sequence[Point]) -> Picture | None:
    """The picture of `points`; None for fewer than two. good: name of the figure of quality. Points with an infinite
    figure (without any error) are not drawn; the caption names them."""
    lossless = [point.letter for point in points if math.isinf(point.good)]
    points = [point for point in points if math.isfinite(point.good)]
    if len(points) < 2:
        return None
    along = doubling([point.bits for point in points], LEFT + 12, RIGHT - 16)
    up = scale([point.good for point in points], BOTTOM - 8, TOP + 12)
    best = frontier(points)
    places = {point.letter: (along.at(point.bits), up.at(point.good)) for point in points}
    line = [places[point.letter] for point in best]
    on_line = {point.letter for point in best}
    marks = [
        dot(
            *places[point.letter],
            4.5,
            "best-point" if point.letter in on_line else "beaten-point",
            _told(point),
        )
        for point in points
    ]
    letters = beside_dots([places[point.letter] for point in points])
    labels = [words(*at, point.letter, "letter", "middle") for point, at in zip(points, letters, strict=True)]
    parts = [
        upwards(up, plain),
        polyline(line, "frontier") if len({*line}) > 1 else "",
        *marks,
        *labels,
        across(along, plain),
        called("stored bits a value", good),
    ]
    return Picture(
        title,
        drawing(title, HEIGHT, parts, "; ".join(map(_told, points))),
        caption=" ".join([_beaten(points), *_undrawn(lossless)]),
    )


def beside_dots(dots: Sequence[Spot]) -> list[Spot]:
    """The place of the letter beside each dot, where it covers no dot and no other letter, if there is such a place."""
    taken: list[Spot] = []
    for x, y in dots:
        around = [(x + dx, y + dy) for dx, dy in ((9, -5), (-9, 13), (9, 13), (-9, -5), (0, -10), (0, 18))]
        others = [*taken, *((left, top + 4) for left, top in dots if (left, top) != (x, y))]
        free = (at for at in around if all(abs(at[0] - a) > 11 or abs(at[1] - b) > 12 for a, b in others))
        taken.append(next(free, around[0]))
    return taken


def _beaten(points: Sequence[Point]) -> str:
    pairs = [(point, beaten_by(point, points)) for point in points]
    said = [f"{point.letter} is beaten by {other.letter}" for point, other in pairs if other is not None]
    if said:
        return f"{', '.join(said)}: no larger, and no worse."
    if len({(point.bits, point.good) for point in points}) == 1:
        return "All are equal."
    return "No dataset beats another one: fewer bits cost accuracy."


def _undrawn(letters: Sequence[str]) -> list[str]:
    return [f"Lossless, so not drawn: {', '.join(letters)}."] if letters else []


def _told(point: Point) -> str:
    return f"{point.letter} {point.name}: {point.bits:.2f} bits a value, {point.good:.6g}"
