"""How a distillation is done: what decides its result, besides model, dataset and texts."""

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
    """Of Adam, at the beginning, where the loss of held-back texts is 0.7 before the first step: they are in proportion
    to that loss, at most twice these (optimizer.py). Each follows half a cosine down to 0. InvalidConfig, which names
    the field.

    What is near the original's outputs already is moved away from them by large steps. MiniLM at int2 g128, by the loss
    at the beginning: of mse's codes (2.4) twice these rates make an embedding cosine of .817 in 60 steps, four times
    .803; of gptq's with 200 texts (.7) these make .859 of .855 in 40 steps, twice the offsets' and three times the
    scales' .846; of gptq's with 1,600 texts (.38) about these raise the loss to .41 in 200 steps, .3 of them lower it
    to .37 in 80.

    How near these rates are to the best does not matter much, but for codes: from .9046 on other texts than it was
    trained with, 60 steps of that make .9065; with .4 of the rates of all but offsets of codes .9060, with three times
    those of scales, zero points and vectors .9062, with four times those of offsets and rows, by which one code of 300
    changes, .9025. More steps are not better by themselves: from .9051, 300 of them end at .9103, but of 1,000 the 50th
    is the best, .9057, since the rates stay high for longer and the patience ends before they fall.

    Of codes by --size that a calibration has made near the original, hardly anything is gained, since few of them
    change: MiniLM in 7.28 MB comes from .9799 to .9801 in 150 steps, in 8.47 MB from .9890 to .9891 in 300. Codes that
    begin at their centres, may go to the next one and have rates that take them there raise the loss in 6.78 MB from
    .1302 to .1327 in 50 steps. Of int3, four times these rates raise it from .138 to .155 in 200; these end at .137.
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

    steps: at most this many.
    minutes: of training, at most; None: no limit.
    seed: of the order of the texts.
    longest: tokens at which a text is cut.
    batch_tokens: tokens of one step, including padding.
    most_offset: how far a latent code may move from its start, in steps between codes.
    every: number of steps between two checks of the held-back texts.
    patience: number of checks without a gain after which training stops.
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
        """InvalidConfig, which names the field."""
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
        """The defaults, but for those of `given` that are not None."""
        return cls(**{name: value for name, value in given.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """What decides the result."""
        return {name: value for name, value in asdict(self).items() if name != "save_every"}
