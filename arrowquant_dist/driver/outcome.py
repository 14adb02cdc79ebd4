"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.reduce import ReportFigures


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run.

    already_finished: whether the target was complete before; `report` is then that of the run that completed it.
    damaged: paths under the target of what `repair` found damaged and made again; None if no repair was asked for.
    sidecars: paths under the target of the model's small files.
    layers: the content of layers.parquet, if this run made it.
    """

    report: ReportFigures
    already_finished: bool
    target: str
    damaged: tuple[str, ...] | None = None
    sidecars: tuple[str, ...] = ()
    layers: bytes | None = None

    @property
    def has_model(self) -> bool:
        """Whether a model can be built from the dataset, to see how its outputs change."""
        return "config.json" in self.sidecars
