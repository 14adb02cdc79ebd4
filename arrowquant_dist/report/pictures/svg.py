"""SVG as text. All text in pictures is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from arrowquant_dist.report.text import printable

WIDTH = 360


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its title. svg: the element, already escaped. legend: (tone, meaning) of each entry. caption: how
    to read the picture, or what it leaves out; may be empty."""

    title: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()
    caption: str = ""


def drawing(title: str, height: float, parts: Iterable[str], figures: str = "") -> str:
    """The whole svg element. title, figures: its name and, in few words, what it shows, for screen readers."""
    label = quoted(f"{title}: {figures}" if figures else title)
    head = f'<svg viewBox="0 0 {WIDTH} {number(height)}" role="img" aria-label="{label}">'
    return f"{head}{''.join(parts)}</svg>"


def words(x: float, y: float, said: str, tone: str = "", anchor: str = "start") -> str:
    """Text with its baseline at y. anchor: `start`, `middle` or `end`."""
    at = f'x="{number(x)}" y="{number(y)}"'
    return f'<text {at}{_of(tone)} text-anchor="{anchor}">{quoted(said)}</text>'


def box(x: float, y: float, width: float, height: float, tone: str, said: str = "") -> str:
    """A rectangle. said: text that is shown when the mouse points at it."""
    size = f'width="{number(width)}" height="{number(height)}"'
    return f'<rect x="{number(x)}" y="{number(y)}" {size}{_of(tone)}{_telling("rect", said)}'


def dot(x: float, y: float, radius: float, tone: str, said: str = "") -> str:
    return (
        f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"{_of(tone)}{_telling("circle", said)}'
    )


def line(x1: float, y1: float, x2: float, y2: float, tone: str) -> str:
    ends = f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}"
    return f'<path d="{ends}"{_of(tone)}/>'


def polyline(points: Sequence[tuple[float, float]], tone: str) -> str:
    ends = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return f'<path d="M{ends}"{_of(tone)}/>'


def area(points: Sequence[tuple[float, float]], tone: str) -> str:
    """The filled polygon with these corners."""
    ends = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return f'<path d="M{ends}Z"{_of(tone)}/>'


def stripes(spans: Iterable[tuple[float, float, float]], height: float, tone: str) -> str:
    """Many horizontal bars of equal height as one path. spans: (left, right, vertical middle) of each."""
    drawn = "".join(f"M{number(x)} {number(y)}H{number(end)}" for x, end, y in spans)
    return f'<path d="{drawn}" stroke-width="{number(height)}" class="stripe {tone}"/>' if drawn else ""


def specks(points: Iterable[tuple[float, float]], tone: str) -> str:
    """Many dots as one path. Dots that would cover each other are drawn once, so the path has at most a dot per unit of
    area."""
    places = sorted({(round(x), round(y)) for x, y in points})
    return f'<path d="{"".join(f"M{x} {y}h0" for x, y in places)}" class="specks {tone}"/>' if places else ""


def number(value: float) -> str:
    """A number rounded to a tenth, without `.0`."""
    return f"{value:.1f}".removesuffix(".0")


def quoted(said: str) -> str:
    """Text escaped for an element's content and for attributes."""
    return escape(printable(said))


def _of(tone: str) -> str:
    return f' class="{tone}"' if tone else ""


def _telling(tag: str, said: str) -> str:
    return f"><title>{quoted(said)}</title></{tag}>" if said else "/>"
