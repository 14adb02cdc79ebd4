"""distill(): a dataset's model is trained to make of texts what the original makes of them, and written anew.

The story, top to bottom: both models are opened and have to agree, the student's weights are made of what is trained
(student.py), the loop runs (training.py), and what it found is written by the workers of `quantize`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arrowquant_dist import machine
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig, parse_size
from arrowquant_dist.config.checks import check_options
from arrowquant_dist.distillation.layers import refuse_mixed, trained_layers
from arrowquant_dist.distillation.memory import refuse_too_large
from arrowquant_dist.distillation.place import DistilledPlace
from arrowquant_dist.distillation.result import Distilled
from arrowquant_dist.distillation.settings import DistillSettings
from arrowquant_dist.distillation.stored import stored_layers
from arrowquant_dist.distillation.student import TrainingResult, build_student
from arrowquant_dist.distillation.teaching import Teacher, held_back
from arrowquant_dist.distillation.training import OnStep, Training, TrainingProgress
from arrowquant_dist.driver.trained import write_trained
from arrowquant_dist.errors import InvalidConfig, counted
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.location import Location
from arrowquant_dist.models.agree import refuse_disagreement
from arrowquant_dist.models.checkpoint import CheckpointLoads
from arrowquant_dist.models.kinds import kind_of_model
from arrowquant_dist.models.outputs import Reader
from arrowquant_dist.models.pair import Opened, filled_model, opened_dataset, opened_model
from arrowquant_dist.models.source import stored_names
from arrowquant_dist.models.threads import bounded_threads
from arrowquant_dist.plan.trained import Trained
from arrowquant_dist.texts import Texts, read_texts

_FEWEST = 20  # texts


def distill(
    model: Location,
    target: Location,
    out: Location,
    texts: Location | Sequence[str],
    *,
    settings: DistillSettings | None = None,
    column: str | None = None,
    memory_budget: str | int = "2GiB",
    storage_options: Mapping[str, Any] | None = None,
    run: RunConfig | None = None,
    progress: OnStep | None = None,
) -> Distilled:
    """Trains scales, zero points, codes, norms and biases of the dataset at `target` and writes another one to `out`.

    model: of which it was made: a folder, a file in its folder, a URL, `minilm`. texts: a .txt, .jsonl or .parquet file
    or URL, `builtin`, or a list. One of ten is not trained with, but judged by. column: of .jsonl and .parquet, `text`
    where None. memory_budget: for reading, and as much for the original's outputs, beside both models and what
    distillation/memory.py counts for each value that is trained. storage_options: of all three places; run, if given,
    has its own, and says how the dataset is written. progress: called after each step.

    Results are the same for equal versions, settings and threads of torch, unless minutes bound the training. Raises
    InvalidConfig for texts, models and files that do not fit, and models too large for the memory; ModelMismatch,
    TargetConflict where `out` holds anything else, UnquantizableWeights where the loss is no number before anything got
    better, NotFound, CorruptWeights, StorageError.
    """
    options = {} if storage_options is None else check_options("storage_options", storage_options)
    limit = parse_size(memory_budget, "memory_budget")
    own = RunConfig(storage_options=options) if run is None else run
    found = read_texts(texts, column, own.source_storage)
    return run_distillation(model, target, out, found, settings or DistillSettings(), limit, own, progress)


def run_distillation(
    model: Location,
    target: Location,
    out: Location,
    texts: Texts,
    settings: DistillSettings,
    memory_nbytes: int,
    run: RunConfig,
    told: OnStep | None,
) -> Distilled:
    """As `distill`."""
    if len(texts) < _FEWEST:
        raise InvalidConfig(
            f"{counted(len(texts), 'text')}, too few to train with; give {_FEWEST} or more", uri=texts.name
        )
    place = DistilledPlace.of(target, out, texts, settings, run)
    finished = place.finished()
    if finished is not None:
        place.states.delete()  # of a process that died before it came to that
        return Distilled.of(place.out.store.uri, finished, already_finished=True)
    with (
        bounded_threads(),
        opened_model(model, run.source_storage, memory_nbytes, place.manifest.unscaled) as original,
        opened_dataset(target, run.target_storage, memory_nbytes) as dataset,
        tempfile.TemporaryDirectory(prefix="arrowquant-") as folder,
    ):
        checkpoint, stored = _sources(original, dataset)
        refuse_disagreement(original, dataset)
        refuse_mixed(stored.layers, stored.uri)
        refuse_too_large(stored.layers, machine.memory_nbytes(), stored.uri)
        found = place.look(checkpoint)
        best, result = _trained(
            original, stored, dataset, texts, settings, memory_nbytes, Path(folder), place, told
        )
        resolved, parts = stored_layers(stored, best, _names(original, stored), place.reasons, Path(folder))
        trained = Trained(resolved, parts, place.config(result), (_note(texts, result),))
        outcome = write_trained(place.out, checkpoint, trained, replace(run, engine="inline"), found)
    place.states.delete()
    return Distilled.of(outcome.target, result, already_finished=outcome.already_finished)


def _sources(original: Opened, dataset: Opened) -> tuple[Checkpoint, Loads]:
    if not isinstance(original.source, CheckpointLoads) or not isinstance(dataset.source, Loads):
        raise TypeError("opened_model gives a checkpoint, opened_dataset a dataset")
    return original.source.checkpoint, dataset.source


def _trained(
    original: Opened,
    stored: Loads,
    dataset: Opened,
    texts: Texts,
    settings: DistillSettings,
    memory_nbytes: int,
    folder: Path,
    place: DistilledPlace,
    told: OnStep | None,
) -> tuple[TrainingResult, dict[str, Any]]:
    """What is stored of the layers that were trained, and what the training came to."""
    kind = kind_of_model(original.files)
    torch.manual_seed(settings.seed)
    one, other = (filled_model(kind, original.files, side.source, None) for side in (original, dataset))
    for model in (one.model, other.model):
        model.requires_grad_(False)  # noqa: FBT003 - torch's
    layers = trained_layers(other, stored, original.source, place.trained_before)
    teacher, reader = Reader(kind, one.model), Reader(kind, other.model)
    made = teacher.tokenized(original.files, [*texts.items], settings.longest)
    learnt, judged = held_back(len(texts))
    lessons, judge = (
        Teacher(teacher, made.only(numbers), settings.batch_tokens, memory_nbytes // 2, folder / name)
        for numbers, name in ((learnt, "learnt"), (judged, "judged"))
    )
    student = build_student(other, layers.matrices, layers.vectors)
    training = Training(reader, student, lessons, judge, settings, place.states)
    best = training.run(told or _unheard)
    progress = training.progress
    result = {
        "steps": progress.step,
        "best": progress.best,
        "losses": {str(step): loss for step, loss in progress.losses.items()},
        "seconds": round(progress.seconds, 1),
        "matrices": len(layers.matrices),
        "vectors": len(layers.vectors),
        "failed_at": progress.failed_at,
    }
    return best, result


def _names(original: Opened, stored: Loads) -> dict[str, str]:
    """{layer's name in the source: the name that the dataset has it under}"""
    stored_as = stored_names(stored)
    return {name: stored_as[name] for name in original.source.layers}


def _note(texts: Texts, result: Mapping[str, Any]) -> str:
    losses, failed_at = result["losses"], result["failed_at"]
    ended = (
        ""
        if failed_at is None
        else f"; the loss was no number after {counted(failed_at, 'step')}, where it ended"
    )
    return (
        f"trained by distill with {counted(len(texts), 'text')} ({texts.name}) in "
        f"{counted(result['steps'], 'step')}: of those held back the loss went from {losses['0']:.4f} to "
        f"{losses[str(result['best'])]:.4f}{ended}"
    )


def _unheard(_progress: TrainingProgress, _loss: float) -> None:
    """Nobody asked."""
