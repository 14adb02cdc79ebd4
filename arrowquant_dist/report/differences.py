"""The layers whose errors differ most between datasets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from arrowquant_dist.report import text
from arrowquant_dist.report.compare import Line
from arrowquant_dist.report.compared import Compared
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.text import MISSING

MOST = 20


def differing_layers(compared: Compared) -> tuple[Line, ...]:
    """A line for each of at most MOST layers, labelled with the layer's name; those first whose noise differs most
    between two datasets. Empty if the figures of layers are known for fewer than two datasets, or if not all
    datasets are of one model."""
    known = [one for one in compared.datasets if one.layers is not None]
    if len(known) < 2 or compared.unlike:
        return ()
    by_name = [{row.layer_name: row for row in one.layers or ()} for one in compared.datasets]
    found = []
    for name in (row.layer_name for row in known[0].layers or ()):
        rows = [layers.get(name) for layers in by_name]
        noises = _known(map(_noise, rows))
        if len(noises) >= 2 and max(noises) > min(noises):
            found.append((max(noises) - min(noises), name, rows))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    return tuple(_line(name, rows) for _, name, rows in found[:MOST])


def _known(noises: Iterable[float | None]) -> list[float]:
    return [noise for noise in noises if noise is not None]


def _noise(row: LayerRow | None) -> float | None:
    """Energy of a layer's error over energy of its weights; 0 if nothing is lost, None if it is not known."""
    if row is None:
        return None
    if (noise_db := row.noise_db) is not None:
        return float(10 ** (-noise_db / 10))
    return 0.0 if not row.is_quantized or _is_lossless(row) else None


def _is_lossless(row: LayerRow) -> bool:
    return row.mse == 0.0 and not row.keeps_codes


def _shown(row: LayerRow | None) -> str:
    """The error of a layer as text."""
    if row is None:
        return MISSING
    if not row.is_quantized:
        return f"kept ({row.quant_type})"
    if row.noise_db is not None:
        return f"{text.decibel(row.noise_db)} ({row.quant_type})"
    return f"lossless ({row.quant_type})" if _is_lossless(row) else MISSING


def _line(name: str, rows: Sequence[LayerRow | None]) -> Line:
    noises = [*map(_noise, rows)]
    least = min(_known(noises))
    return Line(name, tuple(map(_shown, rows)), tuple(noise == least for noise in noises))
