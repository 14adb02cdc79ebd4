"""The training loop: a step for each batch, a look at the held-back texts now and then, and the best result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch

from arrowquant_dist.distillation.checkpoint import TrainingState, TrainingStates
from arrowquant_dist.distillation.losses import loss_of
from arrowquant_dist.distillation.optimizer import Optimizer
from arrowquant_dist.distillation.peers import ALONE, Peers
from arrowquant_dist.distillation.rate import Rate
from arrowquant_dist.distillation.settings import DistillSettings
from arrowquant_dist.distillation.student import Student, TrainingResult
from arrowquant_dist.distillation.teaching import Judge, Lesson, Teacher
from arrowquant_dist.errors import UnquantizableWeights, counted
from arrowquant_dist.models.outputs import Reader

_TIMED = 5  # steps that are timed, to compute how many there is time for


@dataclass(slots=True)
class TrainingProgress:
    """How far a training has come. steps: number of steps to make. step: number of steps made. losses: {step: loss of
    the held-back texts}. best: the step with the lowest of these losses at which the codes took no more bytes than
    before. seconds: duration of the training so far. since: number of looks without a gain after the first half.
    gave_up: whether these were too many. failed_at: the step whose loss was not finite, which is the last one."""

    steps: int
    step: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    best: int = 0
    seconds: float = 0.0
    since: int = 0
    gave_up: bool = False
    failed_at: int | None = None

    @property
    def is_done(self) -> bool:
        return self.gave_up or self.failed_at is not None or self.step >= self.steps

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "losses": {str(step): loss for step, loss in self.losses.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "losses": {int(step): loss for step, loss in values["losses"].items()}})


OnStep = Callable[[TrainingProgress, float], None]  # (progress, loss of the last step)


class Training:
    """The training of a student."""

    def __init__(
        self,
        reader: Reader,
        student: Student,
        teacher: Teacher,
        judge: Judge,
        settings: DistillSettings,
        states: TrainingStates,
        peers: Peers = ALONE,
    ) -> None:
        """states: where the state is saved now and then, and from which the training goes on. peers: workers that make
        the same steps, each with its own slice of a batch; they are equal after each step, and the first one saves."""
        self._reader, self._student, self._settings = reader, student, settings
        self._teacher, self._judge = teacher, judge
        self._optimizer = Optimizer(student, settings)
        self._rate = Rate(student.matrices)
        self.progress = TrainingProgress(settings.steps)
        self.best: TrainingResult = {}
        self._states, self._peers = states, peers
        state = states.load()
        if state is not None:
            self._put(state)

    def run(self, told: OnStep) -> TrainingResult:
        """Trains, and returns the best result: {layer: {part: stored values}}. Ends where the loss is not finite, and
        raises UnquantizableWeights unless there was something better than the beginning by then."""
        progress, settings = self.progress, self._settings
        if not progress.losses:
            self._look()
        while not progress.is_done:
            began = time.monotonic()
            loss = self._step()
            progress.seconds += time.monotonic() - began
            if progress.failed_at is not None:
                self._save()
                break
            progress.step += 1
            self._bound_time()
            told(progress, loss)
            if progress.step % settings.every == 0 or progress.is_done:
                self._look()
                progress.gave_up = progress.since >= settings.patience
            if progress.step % settings.save_every == 0 or progress.is_done:
                self._save()
        return self.best

    def _step(self) -> float:
        lesson = self._teacher.lesson(self.progress.step)
        loss = None if lesson is None else loss_of_lesson(self._reader, lesson, self._student.parameters())
        value = self._peers.total(0.0 if loss is None else float(loss.detach()))
        if not self._is_number(value):
            return value
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
        self._peers.sum_gradients(self._student)
        self._rate.add_gradients()
        self._optimizer.step(self.progress.step / self.progress.steps, beginning=self.progress.losses[0])
        self._rate.after(self.progress.step + 1)
        return value

    def _bound_time(self) -> None:
        """After a few steps, limits their number to what there is time for, so that rates fall to 0 with the last."""
        progress, minutes = self.progress, self._settings.minutes
        if minutes is not None and progress.step == _TIMED:
            progress.seconds = self._peers.largest(progress.seconds)
            fitting = int(60 * minutes / (progress.seconds / progress.step))
            progress.steps = max(_TIMED, min(progress.steps, fitting))

    def _look(self) -> None:
        with torch.no_grad():
            loss = mean_loss(self._reader, self._judge, self._student.parameters(), self._peers)
        if not self._is_number(loss):
            return
        progress = self.progress
        progress.losses[progress.step] = loss
        is_early = 2 * progress.step < progress.steps  # rates are high, so losses may rise before they fall
        progress.since = 0 if is_early or loss <= min(progress.losses.values()) else progress.since + 1
        if loss <= progress.losses[progress.best] and self._rate.fits():
            progress.best = progress.step
            self.best = self._student.found()

    def _save(self) -> None:
        if self._peers.is_first:
            self._states.save(self._state())

    def _state(self) -> TrainingState:
        tensors = {f"leaf {name}": leaf for name, leaf in self._student.leaves}
        tensors |= {f"moment {name}": value for name, value in self._optimizer.moments().items()}
        tensors |= {f"rate {name}": value for name, value in self._rate.state().items()}
        for layer, parts in self.best.items():
            tensors |= {f"best {layer} {part}": value for part, value in parts.items()}
        return TrainingState(self.progress.to_dict(), tensors)

    def _put(self, state: TrainingState) -> None:
        """Goes on from a saved state."""
        self.progress, self.best = reached(state)
        leaves = dict(self._student.leaves)
        with torch.no_grad():
            for name, value in _named(state, "leaf").items():
                leaves[name].copy_(value)
        self._optimizer.put_moments(_named(state, "moment"))
        self._rate.put_state(_named(state, "rate"))

    def _is_number(self, loss: float) -> bool:
        """Whether the loss is finite; if not, notes the step. Raises UnquantizableWeights where nothing better than the
        beginning was found."""
        if math.isfinite(loss):
            return True
        progress = self.progress
        if not progress.best:
            message = (
                f"the loss is not a number after {counted(progress.step, 'step')}; train with lower rates, "
                "or look for NaN in the dataset's report"
            )
            raise UnquantizableWeights(message)
        progress.failed_at = progress.step
        return False


def reached(state: TrainingState) -> tuple[TrainingProgress, TrainingResult]:
    """How far a training had come, and its best result."""
    best: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in _named(state, "best").items():
        layer, _, part = name.rpartition(" ")
        best.setdefault(layer, {})[part] = value
    return TrainingProgress.from_dict(state.numbers), best


def _named(state: TrainingState, kind: str) -> dict[str, torch.Tensor]:
    """Tensors of one kind, by the rest of their names."""
    return {
        name.removeprefix(f"{kind} "): value
        for name, value in state.tensors.items()
        if name.startswith(f"{kind} ")
    }


def loss_of_lesson(reader: Reader, lesson: Lesson, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The lesson's part of the batch's loss. parameters: used in place of the model's own."""
    outputs = reader.run(lesson.inputs, parameters)
    return loss_of(outputs, lesson.outputs, is_causal=reader.is_causal, shares=lesson.shares)


def mean_loss(
    reader: Reader, judge: Judge, parameters: Mapping[str, torch.Tensor], peers: Peers = ALONE
) -> float:
    """Mean loss over all texts of the judge, each batch weighted by its tokens. parameters: used in place of the
    model's own. peers: workers that have the other slices of the batches."""
    total = count = 0.0
    with torch.no_grad():
        for batch in range(len(judge)):
            lesson, tokens = judge.lesson(batch), judge.tokens(batch)
            if lesson is not None:
                total += tokens * float(loss_of_lesson(reader, lesson, parameters))
            count += tokens
    return peers.total(total) / count
