"""What does the same in every block, block by block: where in the model the noise is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.report import text
from arrowquant_dist.report.depth import depth, role, short_role
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.pictures.axes import thinned
from arrowquant_dist.report.pictures.svg import WIDTH, Picture, box, drawing, words

_ROLES = 24  # rows; of more, those with the most noise
_STEPS = 7  # of colour, classes s0 (least noise) to s6
_LEFT, _TOP, _ROW = 128.0, 4.0, 15.0
_LETTERS = 17  # of a row's name
_LEAST_DB = 3.0  # that the colours are spread over: less is no difference to look at


def heat_map(rows: Sequence[LayerRow]) -> Picture | None:
    """A row a role, a column a block; of several layers in one place (experts) the one with the most noise. None where
    no layer of a block has noise."""
    cells = _cells(rows)
    if not cells:
        return None
    shown = sorted(cells, key=lambda name: min(row.noise_db or 0.0 for row in cells[name].values()))[:_ROLES]
    shown = [name for name in cells if name in set(shown)]  # in the model's order
    blocks = [block for own in cells.values() for block in own]
    first, last = min(blocks), max(blocks)
    noises = [row.noise_db or 0.0 for name in shown for row in cells[name].values()]
    high = max(noises)
    low = min(*noises, high - _LEAST_DB)
    width = (WIDTH - _LEFT - 4) / (last - first + 1)
    parts = []
    for line, name in enumerate(shown):
        y = _TOP + line * _ROW
        parts.append(words(_LEFT - 6, y + 11, _shortened(short_role(name)), "axis", "end"))
        for block, row in cells[name].items():
            step = min(_STEPS - 1, int((high - (row.noise_db or 0.0)) / (high - low) * _STEPS))
            x, room = _LEFT + (block - first) * width, max(width - 1, 0.8 * width)
            parts.append(
                box(x, y, room, _ROW - 1, f"s{step}", f"{row.layer_name}: {text.decibel(row.noise_db)}")
            )
    bottom = _TOP + len(shown) * _ROW
    for block in thinned(range(first, last + 1), 8):
        parts.append(words(_LEFT + (block - first + 0.5) * width, bottom + 13, str(block), "axis", "middle"))
    parts.append(words(WIDTH - 4, bottom + 29, "block", "axis", "end"))
    parts.append(_scale(low, high, bottom + 20))
    title = "Error by role and block"
    return Picture(title, drawing(title, bottom + 34, parts), caption=_caption(cells, len(shown)))


def _cells(rows: Sequence[LayerRow]) -> dict[str, dict[int, LayerRow]]:
    """{role: {block: the layer with the most noise}}."""
    cells: dict[str, dict[int, LayerRow]] = {}
    for row in rows:
        block = depth(row.layer_name) if row.noise_db is not None else None
        if block is None:
            continue
        own = cells.setdefault(role(row.layer_name), {})
        if block not in own or (row.noise_db or 0.0) < (own[block].noise_db or 0.0):
            own[block] = row
    return cells


def _scale(low: float, high: float, y: float) -> str:
    """What the colours mean, at the left below."""
    steps = "".join(box(42 + step * 9, y, 9, 9, f"s{step}") for step in range(_STEPS))
    ends = (
        words(38, y + 9, f"{high:.1f}", "axis", "end"),
        words(42 + _STEPS * 9 + 4, y + 9, f"{low:.1f} dB", "axis"),
    )
    return steps + "".join(ends)


def _caption(cells: Mapping[str, object], shown: int) -> str:
    said = "The stronger the colour, the more noise."
    return (
        f"{said} Of {counted(len(cells), 'role')} the {shown} with the most." if shown < len(cells) else said
    )


def _shortened(name: str) -> str:
    """At most _LETTERS, without the middle."""
    if len(name) <= _LETTERS:
        return name
    kept = _LETTERS - 1
    return f"{name[: math.floor(kept / 3)]}…{name[-math.ceil(2 * kept / 3) :]}"
