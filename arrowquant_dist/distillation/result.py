"""What a distillation comes to, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Distilled:
    """target: the dataset that was written. steps: that were made. losses: {step: loss of the held-back texts}, 0 is
    the dataset as it was. best: the step whose result was written. seconds: of training. matrices, vectors: how many
    layers of each were trained. already_finished: all of it was there before. failed_at: the step whose loss was no
    number, where the training ended with what was best before. notes: what else has to be known."""

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
        """result: as the dataset's config has it."""
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
        """Plain values, JSON as they are."""
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
