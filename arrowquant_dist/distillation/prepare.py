"""Prepares a training: fills both models, makes the student of what is trained, and batches of the texts.

Each worker of a training does this for itself, from the same places, and has its own slice of the texts (peers.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from arrowquant_dist.distillation.checkpoint import TrainingStates
from arrowquant_dist.distillation.layers import trained_layers
from arrowquant_dist.distillation.peers import ALONE, Peers
from arrowquant_dist.distillation.settings import DistillSettings
from arrowquant_dist.distillation.student import build_student
from arrowquant_dist.distillation.teaching import ALL_TEXTS, BatchSlice, Judge, Teacher, held_back
from arrowquant_dist.distillation.training import Training
from arrowquant_dist.models.kinds import kind_of_model
from arrowquant_dist.models.outputs import Reader
from arrowquant_dist.models.pair import Opened, filled_model, sources
from arrowquant_dist.texts import Texts


@dataclass(frozen=True, slots=True)
class Trainee:
    """What to train with. memory_nbytes: for the original's outputs for held-back texts."""

    texts: Texts
    settings: DistillSettings
    memory_nbytes: int


def prepared(
    original: Opened,
    dataset: Opened,
    trainee: Trainee,
    states: TrainingStates,
    folder: Path,
    peers: Peers = ALONE,
    of_batches: BatchSlice = ALL_TEXTS,
) -> Training:
    """A training, which goes on from the state in `states` if there is one. folder: for outputs that memory has no room
    for. Raises what reading raises, and InvalidConfig or ModelMismatch where model and dataset do not fit."""
    settings, (_, stored) = trainee.settings, sources(original, dataset)
    kind = kind_of_model(original.files)
    torch.manual_seed(settings.seed)
    one, other = (filled_model(kind, original.files, side.source, None) for side in (original, dataset))
    for model in (one.model, other.model):
        model.requires_grad_(False)  # noqa: FBT003 - torch's
    layers = trained_layers(other, stored, original.source)
    teacher, reader = Reader(kind, one.model), Reader(kind, other.model)
    made = teacher.tokenized(original.files, [*trainee.texts.items], settings.longest)
    learnt, judged = held_back(len(trainee.texts))
    lessons = Teacher(teacher, made.only(learnt), settings.batch_tokens, settings.seed, of_batches)
    judge = Judge(
        teacher,
        made.only(judged),
        settings.batch_tokens,
        trainee.memory_nbytes,
        folder / "judged",
        of_batches,
    )
    shortest = min(learnt, key=made.lengths.__getitem__)
    student = build_student(
        other, layers.matrices, layers.vectors, lambda: reader.run(made.inputs([shortest]))
    )
    return Training(reader, student, lessons, judge, settings, states, peers)
