"""One figure of the weights that datasets of one model can be compared by, whatever each of them keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.reported import Reported


def shared_sqnr(datasets: Sequence[Reported]) -> list[float | None]:
    """The SQNR of each in dB, over the layers that any of them quantizes, so that what one keeps counts for it.

    10·log10(Σw² / Σe²), Σe² as the layer's MSE times its values, Σw² from that and the SQNR of whichever dataset
    quantized it. Infinite where nothing is lost, None where the error of one of these layers is not known.
    """
    energies: dict[str, float] = {}
    for one in datasets:
        for row in one.layers or ():
            if (squares := energy(row)) is not None:
                energies.setdefault(row.layer_name, squares)
    signal = math.fsum(energies.values())
    return [_sqnr(one.layers or (), energies, signal) for one in datasets]


def _sqnr(rows: Sequence[LayerRow], energies: dict[str, float], signal: float) -> float | None:
    errors = {row.layer_name: _error(row) for row in rows if row.layer_name in energies}
    if len(errors) < len(energies):
        return None
    known = [error for error in errors.values() if error is not None]
    noise = math.fsum(known)
    if len(known) < len(errors) or not signal:
        return None
    return 10 * math.log10(signal / noise) if noise else math.inf


def energy(row: LayerRow) -> float | None:
    """Σw² of the original weights, of a layer that lost something."""
    if row.noise_db is None or row.mse is None:
        return None
    return row.mse * row.params * 10 ** (row.noise_db / 10)


def _error(row: LayerRow) -> float | None:
    """Σe². Of codes that are the source's own it is not known."""
    return row.mse * row.params if row.mse is not None and not row.keeps_codes else None
