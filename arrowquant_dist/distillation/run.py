"""run_distillation(): trains a dataset's model to give the original's outputs for texts, and writes a new dataset.

The story, top to bottom: both models are opened and have to agree, the student's weights are made of what is trained
(prepare.py, student.py), the loop runs (training.py), here or in several workers (workers.py), and the workers of
`quantize` write the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arrowquant_dist import machine
from arrowquant_dist.checkpoint.open import source_uri
from arrowquant_dist.config import RunConfig
from arrowquant_dist.distillation.layers import refuse_mixed
from arrowquant_dist.distillation.memory import needed_nbytes, refuse_too_large
from arrowquant_dist.distillation.place import DistilledPlace
from arrowquant_dist.distillation.prepare import Trainee, prepared
from arrowquant_dist.distillation.result import Distilled
from arrowquant_dist.distillation.settings import DistillSettings
from arrowquant_dist.distillation.stored import stored_layers
from arrowquant_dist.distillation.student import TrainingResult
from arrowquant_dist.distillation.training import OnStep, TrainingProgress
from arrowquant_dist.distillation.workers import DistillWork, WorkerPlaces, on_ray, train_on_ray
from arrowquant_dist.driver.trained import write_trained
from arrowquant_dist.errors import ArrowQuantError, InvalidConfig, counted
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.location import Location, location
from arrowquant_dist.models.agree import refuse_disagreement
from arrowquant_dist.models.original import refuse_other_original
from arrowquant_dist.models.pair import Opened, opened_dataset, opened_model, sources
from arrowquant_dist.models.source import stored_names
from arrowquant_dist.models.threads import bounded_threads
from arrowquant_dist.plan.trained import Trained
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.temporary import temporary_folder
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.texts import Texts

_FEWEST = 20  # number of texts


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
    """`distill` with texts that were read and a budget in bytes. told: called after each step."""
    if len(texts) < _FEWEST:
        raise InvalidConfig(
            f"{counted(len(texts), 'text')}, too few to train with; use {_FEWEST} or more", uri=texts.name
        )
    place = DistilledPlace.of(target, out, texts, settings, run)
    before = _finished(place)
    if before is not None:
        return before
    try:
        return _distilled(model, target, out, place, Trainee(texts, settings, memory_nbytes), told)
    except ArrowQuantError:
        meanwhile = _finished(place)  # another process may have finished, and removed what this one needed
        if meanwhile is None:
            raise
        return meanwhile


def _finished(place: DistilledPlace) -> Distilled | None:
    """The result of the same distillation, if its dataset is there."""
    found = place.finished()
    if found is None:
        return None
    place.states.delete()  # in case the process that finished died before this
    return Distilled.of(place.out.store.uri, found, already_finished=True)


def _distilled(
    model: Location,
    target: Location,
    out: Location,
    place: DistilledPlace,
    trainee: Trainee,
    told: OnStep | None,
) -> Distilled:
    run, memory_nbytes = place.run, trainee.memory_nbytes
    workers = on_ray(run)
    with (
        bounded_threads(),
        opened_model(model, run.source_storage, memory_nbytes, place.manifest.unscaled) as original,
        opened_dataset(target, run.target_storage, memory_nbytes) as dataset,
        temporary_folder() as folder,
    ):
        of_original, stored = sources(original, dataset)
        checkpoint = of_original.checkpoint
        refuse_disagreement(original, dataset)
        refuse_other_original(of_original, stored, place.manifest, place.trained_before)
        refuse_mixed(stored.layers, stored.uri)
        if workers is None:
            refuse_too_large(stored.layers, machine.memory_nbytes(), stored.uri)
        found = place.look(checkpoint)
        if workers is None:
            training = prepared(original, dataset, trainee, place.states, folder)
            best = training.run(told or _unheard)
            progress = training.progress
        else:
            work = DistillWork(_places(model, target, out, place), trainee)
            needed = needed_nbytes(stored.layers)
            progress, best = train_on_ray(work, workers, needed, run, told or _unheard)
        result = _result(progress, best)
        resolved, parts = stored_layers(stored, best, _names(original, stored), place.reasons, folder)
        trained = Trained(resolved, parts, place.config(result), (_note(trainee.texts, result),))
        outcome = write_trained(place.out, checkpoint, trained, _writing(run, workers), found)
    place.states.delete()
    return Distilled.of(outcome.target, result, already_finished=outcome.already_finished)


def _places(model: Location, target: Location, out: Location, place: DistilledPlace) -> WorkerPlaces:
    run = place.run
    return WorkerPlaces(
        _anywhere(source_uri(model)),
        _anywhere(location(target, "target")),
        _anywhere(location(out, "out")),
        run.source_storage,
        run.target_storage,
        place.manifest.unscaled,
        place.made_of,
    )


def _anywhere(uri: str) -> str:
    """The URI by which processes with another working directory find the same place."""
    return open_store(uri).uri if is_local(uri) else uri


def _writing(run: RunConfig, workers: int | None) -> RunConfig:
    """How the dataset is written: in this process, and not with the number of workers that trained."""
    own = replace(run, engine="inline", address=None)
    return own if workers is None else replace(own, workers=None)


def _result(progress: TrainingProgress, best: TrainingResult) -> dict[str, Any]:
    """The result of the training, for the new dataset's config."""
    matrices = sum("codes" in parts for parts in best.values())
    return {
        "steps": progress.step,
        "best": progress.best,
        "losses": {str(step): loss for step, loss in progress.losses.items()},
        "seconds": round(progress.seconds, 1),
        "matrices": matrices,
        "vectors": len(best) - matrices,
        "failed_at": progress.failed_at,
    }


def _names(original: Opened, stored: Loads) -> dict[str, str]:
    """{layer's name in the source: its name in the dataset}"""
    stored_as = stored_names(stored)
    return {name: stored_as[name] for name in original.source.layers}


def _note(texts: Texts, result: Mapping[str, Any]) -> str:
    losses, failed_at = result["losses"], result["failed_at"]
    ended = (
        ""
        if failed_at is None
        else f"; the loss was not a number after {counted(failed_at, 'step')}, where it ended"
    )
    return (
        f"trained by distill with {counted(len(texts), 'text')} ({texts.name}) in "
        f"{counted(result['steps'], 'step')}: of those held back the loss went from {losses['0']:.4f} to "
        f"{losses[str(result['best'])]:.4f}{ended}"
    )


def _unheard(_progress: TrainingProgress, _loss: float) -> None:
    """Does nothing: nobody asked for progress."""
