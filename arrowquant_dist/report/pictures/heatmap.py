"""A heat map of the error by role of a layer and by block, which shows where in the model the noise is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arrowquant_dist.errors import counted
from arrowquant_dist.report import text
from arrowquant_dist.report.depth import depth, role, short_role
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.pictures.axes import below, thinned, whole_ticks
from arrowquant_dist.report.pictures.svg import WIDTH, Picture, box, drawing, words

_ROLES = 24  # rows at most; those with the most noise are shown
_STEPS = 7  # number of colours, classes s0 (least noise) to s6
_LEFT, _TOP, _ROW = 160.0, 4.0, 15.0
_LETTERS = 22  # of a row's name, at most
_COLUMNS = 100  # at most, each two units wide; if there are more blocks, several share a column
_SPARSE = 4  # if numbers up to the last are so many times the blocks, only blocks have columns
_LEAST_DB = 3.0  # least range of the colours; a smaller difference does not matter


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns. of: {block: its column}. count: number of columns. most: largest number of blocks in a column.
    labels: blocks that are labelled."""

    of: Mapping[int, int]
    count: int
    most: int
    labels: tuple[int, ...]


def heat_map(rows: Sequence[LayerRow]) -> Picture | None:
    """A heat map with a row for each role and a column for each block, or for several neighbouring blocks. If several
    layers share a cell (experts, or blocks of one column), the one with the most noise is shown. None if no layer of a
    block has noise."""
    places = _by_block(rows)
    if not places:
        return None
    columns = _columns(sorted({block for own in places.values() for block, _ in own}))
    cells = {name: _worst(own, columns) for name, own in places.items()}
    shown = sorted(cells, key=lambda name: min(row.noise_db or 0.0 for row in cells[name].values()))[:_ROLES]
    shown = [name for name in cells if name in set(shown)]  # in the model's order
    noises = [row.noise_db or 0.0 for name in shown for row in cells[name].values()]
    high = max(noises)
    low = min(*noises, high - _LEAST_DB)
    width = (WIDTH - _LEFT - 4) / columns.count
    parts = []
    names = text.shortened_names([short_role(name) for name in shown], _LETTERS)
    for line, (name, said) in enumerate(zip(shown, names, strict=True)):
        y = _TOP + line * _ROW
        parts.append(words(_LEFT - 6, y + 11, said, "axis", "end"))
        for column, row in cells[name].items():
            step = min(_STEPS - 1, int((high - (row.noise_db or 0.0)) / (high - low) * _STEPS))
            x, room = _LEFT + column * width, max(width - 1, 0.8 * width)
            parts.append(
                box(x, y, room, _ROW - 1, f"s{step}", f"{row.layer_name}: {text.decibel(row.noise_db)}")
            )
    bottom = _TOP + len(shown) * _ROW
    for block in columns.labels:
        x = _LEFT + (columns.of[block] + 0.5) * width
        parts.append(below(x, bottom + 13, str(block)))
    parts.append(words(WIDTH - 4, bottom + 29, "block", "axis", "end"))
    parts.append(_scale(low, high, bottom + 20))
    title = "Error by role and block"
    caption = _caption(len(cells), len(shown), columns)
    return Picture(title, drawing(title, bottom + 34, parts, _worst_role(cells)), caption=caption)


def _columns(blocks: Sequence[int]) -> _Columns:
    """A column for each number from the first block to the last, or only for each block if most numbers have none."""
    first, last = blocks[0], blocks[-1]
    is_sparse = last - first + 1 > _SPARSE * len(blocks)
    every = blocks if is_sparse else range(first, last + 1)
    most = math.ceil(len(every) / _COLUMNS)
    room = WIDTH - _LEFT
    labels = thinned(every, room) if is_sparse else whole_ticks(first, last, room)
    of = {block: index // most for index, block in enumerate(every)}
    return _Columns(of, math.ceil(len(every) / most), most, labels)


def _by_block(rows: Sequence[LayerRow]) -> dict[str, list[tuple[int, LayerRow]]]:
    """{role: [(block, layer)]} of the layers of blocks that have noise."""
    found: dict[str, list[tuple[int, LayerRow]]] = {}
    for row in rows:
        block = depth(row.layer_name) if row.noise_db is not None else None
        if block is not None:
            found.setdefault(role(row.layer_name), []).append((block, row))
    return found


def _worst(layers: Sequence[tuple[int, LayerRow]], columns: _Columns) -> dict[int, LayerRow]:
    """{column: the layer with the most noise}."""
    worst: dict[int, LayerRow] = {}
    for block, row in layers:
        column = columns.of[block]
        if column not in worst or (row.noise_db or 0.0) < (worst[column].noise_db or 0.0):
            worst[column] = row
    return worst


def _worst_role(cells: Mapping[str, Mapping[int, LayerRow]]) -> str:
    worst = min((row for own in cells.values() for row in own.values()), key=lambda row: row.noise_db or 0.0)
    name = text.shortened_word(worst.layer_name, 80)
    return f"{counted(len(cells), 'role')}, most noise in {name}, {text.decibel(worst.noise_db)}"


def _scale(low: float, high: float, y: float) -> str:
    """The scale of colours, at the lower left."""
    steps = "".join(box(42 + step * 9, y, 9, 9, f"s{step}") for step in range(_STEPS))
    ends = (
        words(38, y + 9, f"{high:.1f}", "axis", "end"),
        words(42 + _STEPS * 9 + 4, y + 9, f"{low:.1f} dB", "axis"),
    )
    return steps + "".join(ends)


def _caption(roles: int, shown: int, columns: _Columns) -> str:
    said = ["The stronger the colour, the more noise."]
    if columns.most > 1:
        said.append(f"A column is {counted(columns.most, 'block')}, in the colour of the noisiest.")
    if shown < roles:
        said.append(f"Of {counted(roles, 'role')}, the {shown} with the most noise are shown.")
    return " ".join(said)
