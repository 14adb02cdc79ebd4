"""The layers whose errors differ most between datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arrowquant_dist.report import text
from arrowquant_dist.report.compare import Line
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.report.text import MISSING
from arrowquant_dist.report.unlike import unlike

MOST = 20


@dataclass(frozen=True, slots=True)
class _Cell:
    """A layer in one dataset. noise: energy of the error over energy of the weights; 0 if nothing is lost, None if it
    is not known. shown: the error as text."""

    noise: float | None
    shown: str


def differing_layers(datasets: Sequence[Reported]) -> tuple[Line, ...]:
    """A line for each of at most MOST layers, labelled with the layer's name; those first whose noise differs most
    between two datasets. Empty if the figures of layers are known for fewer than two datasets, or if those datasets are
    not of one model."""
    known = [one for one in datasets if one.layers is not None]
    if len(known) < 2 or unlike(known):
        return ()
    by_name = [{row.layer_name: _cell(row) for row in one.layers or ()} for one in datasets]
    found = []
    for name in (row.layer_name for row in known[0].layers or ()):
        cells = [layers.get(name) for layers in by_name]
        noises = [cell.noise for cell in cells if cell is not None and cell.noise is not None]
        if len(noises) >= 2 and max(noises) > min(noises):
            found.append((max(noises) - min(noises), name, cells))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    return tuple(_line(name, cells) for _, name, cells in found[:MOST])


def _cell(row: LayerRow) -> _Cell:
    if not row.is_quantized:
        return _Cell(0.0, f"kept ({row.quant_type})")
    if row.noise_db is not None:
        return _Cell(10 ** (-row.noise_db / 10), f"{text.decibel(row.noise_db)} ({row.quant_type})")
    lossless = row.mse == 0.0 and not row.keeps_codes
    return _Cell(0.0 if lossless else None, f"lossless ({row.quant_type})" if lossless else MISSING)


def _line(name: str, cells: Sequence[_Cell | None]) -> Line:
    least = min(cell.noise for cell in cells if cell is not None and cell.noise is not None)
    return Line(
        name,
        tuple(cell.shown if cell is not None else MISSING for cell in cells),
        tuple(cell is not None and cell.noise == least for cell in cells),
    )
