"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.reduce import ReportFigures

_OF_TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece")  # parts of the names of their files


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
        """Whether the dataset has what a model is built from and reads texts with: its config and its tokenizer."""
        has_tokenizer = any(part in path for path in self.sidecars for part in _OF_TOKENIZERS)
        return "config.json" in self.sidecars and has_tokenizer
