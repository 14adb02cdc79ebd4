"""Settings of a distillation: what decides its result, besides model, dataset and texts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from arrowquant_dist.config.checks import check_whole, invalid, shown

BETAS = (0.9, 0.98)
_MOST = (1 << 31) - 1


def _check_number(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise invalid(name, f"must be a number above 0, not {shown(value)}")


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of Adam at the beginning of a training whose held-back texts have a loss of 0.7 before the first
    step. For other losses they are multiplied in proportion, by at most 2 (optimizer.py). They fall to 0 along half a
    cosine. Raises InvalidConfig, which names the field.

    offsets: rate of the offsets of codes. scales, zero_points, vectors: rates of these. rows: rate of the offsets of
    embeddings, whose rows are seen only now and then.

    Large steps move a model that is already near the original's outputs away from them. For MiniLM at int2 g128, by the
    loss at the beginning: with codes by mse (2.4), twice these rates reach an embedding cosine of .817 in 60 steps, and
    four times these rates .803. With codes by gptq from 200 texts (.7), these rates raise it from .855 to .859 in 40
    steps; twice that of offsets and three times that of scales lower it to .846. With codes by gptq from 1,600 texts
    (.38), about these rates raise the loss to .41 in 200 steps, and .3 of them lower it to .37 in 80.

    It matters little how near these rates are to the best, except for codes: 60 steps with these rates raise the cosine
    on other texts than those of the training from .9046 to .9065. With .4 of all rates but that of code offsets it
    becomes .9060, with three times those of scales, zero points and vectors .9062, and with four times those of offsets
    and rows, by which one code in 300 changes, .9025. More steps alone are not better: from .9051, 300 steps end at
    .9103, but of 1,000 the 50th is the best, .9057, since the rates stay high for longer and patience ends before they
    fall.

    Codes by --size that a calibration has made close to the original gain hardly anything, since few of them change:
    MiniLM in 7.28 MB goes from .9799 to .9801 in 150 steps, in 8.47 MB from .9890 to .9891 in 300. Where codes begin at
    their centres, may move to the next code and have rates that take them there, the loss in 6.78 MB rises from .1302
    to .1327 in 50 steps. For int3, four times these rates raise it from .138 to .155 in 200 steps; these end at .137.
    """

    offsets: float = 0.003
    scales: float = 0.001
    zero_points: float = 0.002
    vectors: float = 0.0005
    rows: float = 0.006  # offsets of embeddings, whose rows are seen now and then

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _check_number(name, value)


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """How `distill` trains.

    steps: maximum number of training steps.
    minutes: maximum duration of the training in minutes; None: no limit.
    seed: seed of the order of the texts, and of the new texts made from them.
    longest: maximum number of tokens of a text, which is cut there.
    batch_tokens: maximum number of tokens of one step, including padding.
    most_offset: how far a latent code may move from its start, in steps between codes.
    every: number of steps between two checks of the held-back texts.
    patience: number of checks without a gain, after the first half of the steps, after which training stops.
    save_every: number of steps between two checkpoints; does not change the result.
    rates: learning rates.
    """

    steps: int = 400
    minutes: float | None = None
    seed: int = 0
    longest: int = 48
    batch_tokens: int = 512
    most_offset: float = 0.3
    every: int = 50
    patience: int = 4
    save_every: int = 200
    rates: Rates = Rates()

    def __post_init__(self) -> None:
        """Raises InvalidConfig, which names the field."""
        check_whole("steps", self.steps, 1, _MOST)
        check_whole("seed", self.seed, 0, _MOST)
        check_whole("longest", self.longest, 2, _MOST)
        check_whole("batch_tokens", self.batch_tokens, 1, _MOST)
        check_whole("every", self.every, 1, _MOST)
        check_whole("patience", self.patience, 1, _MOST)
        check_whole("save_every", self.save_every, 1, _MOST)
        _check_number("most_offset", self.most_offset)
        if self.minutes is not None:
            _check_number("minutes", self.minutes)

    @classmethod
    def with_given(cls, **given: Any) -> Self:
        """The defaults, except for those of `given` that are not None."""
        return cls(**{name: value for name, value in given.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """The settings that decide the result, as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "save_every"}
