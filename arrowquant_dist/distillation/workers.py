"""Training by several workers of Ray: what each of them does, and how the result comes back.

A worker opens model and dataset for itself, as a single process does, and takes its slice of each step's texts. The
first worker saves a state at the target now and then. All workers begin from that state, also after one of them was
lost, and the driver finds the result there: nothing large goes through Ray, and a driver that is started again finds it
as well. The state does not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.code_digest import training_digest
from arrowquant_dist.config import RunConfig, Storage
from arrowquant_dist.distillation.checkpoint import TrainingStates
from arrowquant_dist.distillation.peers import ManyPeers, torch_reduce
from arrowquant_dist.distillation.prepare import Trainee, prepared
from arrowquant_dist.distillation.student import TrainingResult
from arrowquant_dist.distillation.teaching import BatchSlice
from arrowquant_dist.distillation.training import OnStep, TrainingProgress, reached
from arrowquant_dist.engine import train_together
from arrowquant_dist.engine.training import Tell
from arrowquant_dist.errors import IncompleteDataset
from arrowquant_dist.models.pair import opened_dataset, opened_model
from arrowquant_dist.models.threads import threads
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.temporary import temporary_folder

_PROCESS_NBYTES = 512 << 20  # of libraries, in a worker of Ray


def on_ray(run: RunConfig) -> int | None:
    """Number of Ray workers that train; None where this process trains. Several workers have to be asked for: a step is
    small, and each worker holds both models."""
    if run.engine == "inline":
        return None
    is_asked = run.engine == "ray" or run.address is not None or (run.workers or 1) > 1
    return (run.workers or 1) if is_asked else None


@dataclass(frozen=True, slots=True)
class WorkerPlaces:
    """What each worker opens, as URIs that mean the same on every machine. out: where states are saved. made_of: what
    identifies the distillation."""

    model: str
    target: str
    out: str
    source_storage: Storage
    target_storage: Storage
    unscaled: tuple[str, ...]
    made_of: Mapping[str, Any]

    @property
    def states(self) -> TrainingStates:
        return TrainingStates(open_store(self.out, self.target_storage), self.made_of)


@dataclass(frozen=True, slots=True)
class DistillWork:
    """A JointWork (engine/training.py)."""

    places: WorkerPlaces
    trainee: Trainee

    def code(self) -> str:
        return training_digest()

    def run(self, number: int, count: int, cpus: int, tell: Tell) -> None:
        """Trains to the end, or until the loss is not finite; the first worker reports each step."""
        places, memory_nbytes = self.places, self.trainee.memory_nbytes

        def told(progress: TrainingProgress, loss: float) -> None:
            if number == 0:
                tell((progress.to_dict(), loss))

        with (
            threads(cpus),
            opened_model(places.model, places.source_storage, memory_nbytes, places.unscaled) as original,
            opened_dataset(places.target, places.target_storage, memory_nbytes) as dataset,
            temporary_folder() as folder,
        ):
            peers = ManyPeers(number, torch_reduce)
            training = prepared(
                original, dataset, self.trainee, places.states, folder, peers, BatchSlice(number, count)
            )
            training.run(told)


def train_on_ray(
    work: DistillWork, workers: int, needed_nbytes: int, run: RunConfig, told: OnStep
) -> tuple[TrainingProgress, TrainingResult]:
    """The result of the workers. needed_nbytes: memory of a worker, besides what it reads and outputs that it keeps."""

    def on_note(note: tuple[Mapping[str, Any], float]) -> None:
        told(TrainingProgress.from_dict(note[0]), note[1])

    states = work.places.states
    state = states.load()  # may be final, if a driver was stopped before it wrote the dataset
    if state is None or not TrainingProgress.from_dict(state.numbers).is_done:
        state = None  # frees memory that the driver does not need meanwhile
        cluster_nbytes = needed_nbytes + work.trainee.memory_nbytes + _PROCESS_NBYTES
        train_together(work, workers, needed_nbytes, cluster_nbytes, run, on_note)
        state = states.load()
    if state is None:
        message = "the workers of the training ended and left no result; run the same command again"
        raise IncompleteDataset(message, uri=states.store.uri)
    return reached(state)
