"""One error of the weights by which datasets of the same model can be compared, even if they keep different layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.reported import Reported


def shared_sqnr(datasets: Sequence[Reported]) -> list[float | None]:
    """The SQNR of each dataset in dB, over all layers that at least one of them quantizes. So a dataset that keeps some
    of these layers gets credit for it.

    It is 10·log10(Σw² / Σe²). Σe² of a layer is its MSE times its number of values. Σw² follows from Σe² and the SQNR,
    both of the first dataset that quantized the layer with a loss. Infinite if nothing is lost, None if the error of
    one of these layers is not known.
    """
    known: dict[str, float] = {}
    for one in reversed(datasets):
        known |= energies(one)
    signal = math.fsum(known.values())
    return [_sqnr(one.layers or (), known, signal) for one in datasets]


def _sqnr(rows: Sequence[LayerRow], energies: dict[str, float], signal: float) -> float | None:
    errors = {row.layer_name: _error(row) for row in rows if row.layer_name in energies}
    if len(errors) < len(energies):
        return None
    known = [error for error in errors.values() if error is not None]
    noise = math.fsum(known)
    if len(known) < len(errors) or not signal:
        return None
    return 10 * math.log10(signal / noise) if noise else math.inf


def energies(one: Reported) -> dict[str, float]:
    """{layer: Σw² of its original weights}, without layers of which nothing was lost or whose error is not known."""
    return {
        row.layer_name: row.mse * row.params * 10 ** (noise_db / 10)
        for row in one.layers or ()
        if row.mse is not None and (noise_db := row.noise_db) is not None
    }


def _error(row: LayerRow) -> float | None:
    """Σe² of a layer; None if it is not known, as for codes that are the source's own."""
    return row.mse * row.params if row.mse is not None and not row.keeps_codes else None
