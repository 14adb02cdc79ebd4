"""What a run ends with."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.reduce import ReportFigures


@dataclass(frozen=True, slots=True)
class Outcome:
    """already_finished: the target was complete before; `report` is that of the run that completed it. damaged: paths
    under the target of what `repair` has found and made again; None where nobody looked. sidecars: paths under the
    target of the model's small files. layers: the content of layers.parquet, where it was made here."""

    report: ReportFigures
    already_finished: bool
    target: str
    damaged: tuple[str, ...] | None = None
    sidecars: tuple[str, ...] = ()
    layers: bytes | None = None

    @property
    def has_model(self) -> bool:
        """Whether a model can be built of it, to see what becomes of its outputs."""
        return "config.json" in self.sidecars
