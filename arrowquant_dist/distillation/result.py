"""The result of a distillation, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Distilled:
    """The result of `distill`.

    target: the dataset that was written.
    steps: number of training steps that were made.
    losses: {step: loss of the held-back texts}; step 0 is the dataset before training.
    best: the step whose result was written.
    seconds: duration of the training in seconds.
    matrices, vectors: number of layers of each kind that were trained.
    already_finished: whether everything was there before.
    failed_at: the step at which the loss became NaN or infinite and training ended, with the best result before it;
        None if that did not happen.
    notes: sentences for people.
    """

    target: str
    steps: int
    losses: Mapping[int, float]
    best: int
    seconds: float
    matrices: int
    vectors: int
    already_finished: bool = False
    failed_at: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, target: str, result: Mapping[str, Any], *, already_finished: bool) -> Self:
        """The result at `target`. result: as the dataset's config has it."""
        return cls(
            target,
            result["steps"],
            {int(step): loss for step, loss in result["losses"].items()},
            result["best"],
            result["seconds"],
            result["matrices"],
            result["vectors"],
            already_finished,
            result.get("failed_at"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "target": self.target,
            "steps": self.steps,
            "best": self.best,
            "losses": {str(step): loss for step, loss in self.losses.items()},
            "seconds": round(self.seconds, 1),
            "matrices": self.matrices,
            "vectors": self.vectors,
            "already_finished": self.already_finished,
            "failed_at": self.failed_at,
            "notes": list(self.notes),
        }
