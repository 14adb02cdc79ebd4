"""Workers with a slice of every batch each have the losses and gradients of one worker with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from arrowquant_dist import RunConfig
from arrowquant_dist.config import Storage
from arrowquant_dist.distillation.layers import trained_layers
from arrowquant_dist.distillation.losses import BatchShares, loss_of
from arrowquant_dist.distillation.peers import ALONE, ManyPeers, Operation, Peers
from arrowquant_dist.distillation.student import Student, build_student
from arrowquant_dist.distillation.teaching import ALL_TEXTS, BatchSlice, Judge, Teacher
from arrowquant_dist.distillation.training import loss_of_lesson, mean_loss
from arrowquant_dist.distillation.workers import on_ray
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.models.kinds import kind_of_model
from arrowquant_dist.models.outputs import Outputs, Reader
from arrowquant_dist.models.pair import filled_model, opened_dataset, opened_model
from tests.distillation.test_distill import INT2
from tests.evaluation.models import TEXTS, quantize, save_bert, save_llama

STORAGE = Storage({})


class Meeting:
    """Threads in the place of processes: what all of them have brought is reduced when the last one is there."""

    def __init__(self, count: int) -> None:
        self._barrier = Barrier(count)
        self._brought = [torch.empty(0)] * count

    def reduce_of(self, number: int) -> Callable[[torch.Tensor, Operation], None]:
        def reduce(tensor: torch.Tensor, operation: Operation) -> None:
            self._brought[number] = tensor.clone()
            self._barrier.wait()
            every = torch.stack(self._brought)
            found = every.sum(0) if operation == "sum" else every.amax(0)
            self._barrier.wait()
            tensor.copy_(found)

        return reduce


class Learner:
    """One worker: a student of its own, and its slice of the texts."""

    def __init__(self, model: Path, target: Path, folder: Path, of_batches: BatchSlice, peers: Peers) -> None:
        self.peers = peers
        with (
            opened_model(model, STORAGE, 1 << 28) as original,
            opened_dataset(target, STORAGE, 1 << 28) as dataset,
        ):
            kind = kind_of_model(original.files)
            one, other = (
                filled_model(kind, original.files, side.source, None) for side in (original, dataset)
            )
            other.model.requires_grad_(False)  # noqa: FBT003
            assert isinstance(dataset.source, Loads)
            layers = trained_layers(other, dataset.source, original.source)
            teacher, self.reader = Reader(kind, one.model), Reader(kind, other.model)
            texts = teacher.tokenized(original.files, [*TEXTS], 48)
        self.teacher = Teacher(teacher, texts, 100, 0, of_batches)
        self.texts_of_judge = Judge(teacher, texts, 100, 1 << 20, folder, of_batches)
        self.student = build_student(
            other, layers.matrices, layers.vectors, lambda: self.reader.run(texts.inputs([0]))
        )

    def learn(self, step: int) -> float:
        """The whole step's loss; the student has its gradients, and no others."""
        for _, leaf in self.student.leaves:
            leaf.grad = None
        for lookup in self.student.lookups.values():
            lookup.seen = None
        lesson = self.teacher.lesson(step)
        value = 0.0
        if lesson is not None:
            loss = loss_of_lesson(self.reader, lesson, self.student.parameters())
            loss.backward()  # type: ignore[no-untyped-call]
            value = float(loss.detach())
        self.peers.sum_gradients(self.student)
        return self.peers.total(value)

    def judge(self) -> float:
        with torch.no_grad():
            return mean_loss(self.reader, self.texts_of_judge, self.student.parameters(), self.peers)


def gradients(student: Student) -> dict[str, torch.Tensor]:
    return {name: leaf.grad.to_dense() for name, leaf in student.leaves if leaf.grad is not None}


def seen(student: Student) -> dict[str, list[int]]:
    return {name: [] if it.seen is None else it.seen.tolist() for name, it in student.lookups.items()}


@pytest.mark.parametrize(
    ("save", "rounding"), [(save_bert, 3e-6), (save_llama, 2**-7)], ids=["bert", "llama"]
)
def test_slices_add_up_to_the_step_of_one_worker(
    save: Callable[[Path], Path], rounding: float, tmp_path: Path
) -> None:
    """Of three workers; a batch of two texts has none for the third. rounding: of gradients, which are bfloat16 where
    the weights are."""
    places = save(tmp_path / "model"), quantize(tmp_path / "model", tmp_path / "target", INT2), tmp_path
    meeting = Meeting(3)
    alone = Learner(*places, ALL_TEXTS, ALONE)
    several = [
        Learner(*places, BatchSlice(number, 3), ManyPeers(number, meeting.reduce_of(number)))
        for number in range(3)
    ]
    assert [each.peers.is_first for each in several] == [True, False, False]
    epoch = range(len(alone.teacher))
    without = next(step for step in epoch if several[2].teacher.lesson(step) is None)
    steps = [without, without + 1, len(epoch) + without]  # the last one has new texts
    with ThreadPoolExecutor(3) as threads:
        for step in steps:
            expected = alone.learn(step)
            for found in threads.map(lambda each, step=step: each.learn(step), several):
                assert found == pytest.approx(expected, rel=1e-6)
            for each in several:
                assert gradients(each.student).keys() == gradients(alone.student).keys()
                assert seen(each.student) == seen(alone.student)
                for name, gradient in gradients(each.student).items():
                    whole = gradients(alone.student)[name]
                    # softmax takes no notice of keys' biases: theirs are nothing but rounding
                    assert (gradient - whole).norm() <= rounding * whole.norm() + 1e-7, name
        expected = alone.judge()
        for found in threads.map(Learner.judge, several):
            assert found == pytest.approx(expected, rel=1e-6)
    one, *others = (gradients(each.student) for each in several)
    assert one
    assert all(torch.equal(one[name], each[name]) for each in others for name in one)


def test_texts_of_one_token_have_no_part_in_the_divergence() -> None:
    """They have no next token, and the mean of none is no number."""
    hidden, none = torch.ones(2, 4), torch.empty(0, 8)
    teacher, student = Outputs((hidden,), none), Outputs((2 * hidden,), none)
    loss = loss_of(student, teacher, is_causal=True, shares=BatchShares(0.25, 0.0))
    assert float(loss) == pytest.approx(0.25)  # of the tokens, |2 - 1|² / 1²


@pytest.mark.parametrize(
    ("run", "workers"),
    [
        (RunConfig(), None),
        (RunConfig(workers=1), None),
        (RunConfig(workers=3), 3),
        (RunConfig(engine="inline", workers=3), None),
        (RunConfig(address="head:6379"), 1),
        (RunConfig(engine="ray", workers=2), 2),
    ],
)
def test_ray_trains_where_more_than_one_worker_or_a_cluster_is_asked_for(
    run: RunConfig, workers: int | None
) -> None:
    assert on_ray(run) == workers
