"""Pictures of the size of datasets against their quality: one by error of weights, and one for each set of texts."""

from __future__ import annotations

from collections.abc import Sequence

from arrowquant_dist.report.compare import output_texts, outputs_with, stored_bits
from arrowquant_dist.report.compared import Compared
from arrowquant_dist.report.evaluated import HIGH
from arrowquant_dist.report.pictures.pareto import Point, pareto
from arrowquant_dist.report.pictures.svg import Picture


def tradeoffs(compared: Compared) -> tuple[Picture, ...]:
    """Pictures that show at least two datasets, those of outputs first; none if the datasets are not of one model."""
    if compared.unlike:
        return ()
    found = [_outputs(compared, digest, name) for digest, name in output_texts(compared.datasets).items()]
    points = _points(compared, compared.shared_sqnr)
    found.append(pareto("Stored bits against error of the weights", "SQNR, dB", points))
    return tuple(picture for picture in found if picture is not None)


def _outputs(compared: Compared, digest: str, name: str) -> Picture | None:
    """The picture by the first figure for which higher is better."""
    for label, cells in outputs_with(compared.datasets, digest).items():
        if any(cell.better == HIGH for cell in cells):
            points = _points(compared, [cell.value for cell in cells])
            return pareto(f"Stored bits against outputs ({name})", label, points)
    return None


def _points(compared: Compared, goods: Sequence[float | None]) -> list[Point]:
    known = zip(compared.datasets, compared.headings, goods, strict=True)
    return [
        Point(column.letter, column.short, bits, good)
        for one, column, good in known
        if good is not None and (bits := stored_bits(one.report)) is not None
    ]
