"""The conductor: starts workers through Ray Train, and translates why they ended into errors of ours. The workers'
own code is here too.

Only these processes import Ray Train. It takes three seconds, and needs packages that nothing else does (pandas).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from arrowquant_dist.code_digest import digests
from arrowquant_dist.engine.ray.actor import may_pass_elsewhere
from arrowquant_dist.engine.ray.failures import loss, start_failure
from arrowquant_dist.engine.training import JointWork
from arrowquant_dist.errors import (
    ArrowQuantError,
    MissingDependency,
    PartialRun,
    StorageError,
    counted,
    shortened,
)

_TIMEOUT_SECONDS = 1800  # of a sum over all workers, which waits for the last one; torch's own default
# Ray Train checks its workers every two seconds by default, and only then restarts those that are lost.
_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
_INTERVAL_SECONDS = "0.5"


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """What the conductor needs to know.

    desk: handle of the Desk actor.
    code: the driver's code digest.
    work: what workers do, pickled.
    workers: number of workers.
    resources: of each worker.
    attempts: how often the workers are started.
    deadline: seconds for which a worker may keep the others waiting.
    folder: for Ray Train's own files.
    environment: environment variables of the workers.
    """

    desk: Any
    code: str
    work: bytes
    workers: int
    resources: Mapping[str, float]
    attempts: int
    deadline: float | None
    folder: str
    environment: Mapping[str, str]


class Conductor:
    """The actor that waits for Ray Train."""

    def conduct(self, setup: TrainingSetup) -> None:
        """Returns when all workers have ended. Raises PartialRun if they died too often, what one of them raised, and
        MissingDependency."""
        os.environ.setdefault(_INTERVAL, _INTERVAL_SECONDS)
        train = _ray_train()
        try:
            _trainer(train, setup).fit()
        except train.TrainingFailedError as error:
            raise _failure(error, setup.attempts) from error


def _ray_train() -> Any:
    """The module ray.train. Raises MissingDependency if Ray Train is not installed or is an older version."""
    try:
        import ray.train.torch
    except ImportError as error:
        message = (
            f"several workers train with Ray Train, which needs a package ({error.name}): "
            "pip install 'arrowquant-dist[train]'"
        )
        raise MissingDependency(message) from error
    if not hasattr(ray.train, "WorkerGroupError"):
        message = (
            f"Ray {ray.__version__} has an old version of Ray Train; install Ray 2.51 or later, and remove "
            "RAY_TRAIN_V2_ENABLED from the environment"
        )
        raise MissingDependency(message)
    return ray.train


def _trainer(train: Any, setup: TrainingSetup) -> Any:
    def begin() -> None:
        _begin(setup.desk, setup.code, setup.work, int(setup.resources["CPU"]))

    return train.torch.TorchTrainer(
        begin,
        torch_config=train.torch.TorchConfig(
            backend="gloo", timeout_s=int(setup.deadline or _TIMEOUT_SECONDS)
        ),
        scaling_config=train.ScalingConfig(
            num_workers=setup.workers,
            resources_per_worker=dict(setup.resources),
            placement_strategy="SPREAD",
        ),
        run_config=train.RunConfig(
            name="training",
            storage_path=setup.folder,
            failure_config=train.FailureConfig(
                max_failures=setup.attempts - 1, controller_failure_limit=setup.attempts
            ),
            worker_runtime_env={"env_vars": dict(setup.environment)},
        ),
    )


def _begin(desk: Any, code: str, work: bytes, cpus: int) -> None:
    """The body of a worker. It unpickles its work only if its code is the driver's."""
    context = _ray_train().get_context()
    number = context.get_world_rank()
    try:
        if code not in digests():
            message = (
                "a node has another version of arrowquant-dist than the driver; install the same one everywhere, or "
                "submit the job with its --working-dir"
            )
            raise MissingDependency(message)
        own: JointWork = pickle.loads(work)  # noqa: S301 - the driver's, as all that Ray brings
        own.run(number, context.get_world_size(), cpus, desk.tell.remote)
    except ArrowQuantError as error:
        if not may_pass_elsewhere(error):
            ray.get(desk.fail.remote(error))
        raise
    ray.get(desk.end.remote(number))


def _failure(error: Any, attempts: int) -> Exception:
    """What fit() raised, as an error of ours. A worker that died takes the others with it, whose errors say nothing
    else; so its death comes first."""
    of_workers: Mapping[int, Any] = getattr(error, "worker_failures", {})
    for number, failure in of_workers.items():
        cause = getattr(failure, "health_check_failure", failure)
        if isinstance(cause, RayActorError):
            message = (
                f"workers of the training died {counted(attempts, 'time')}, the last one was number {number} "
                f"({loss(cause)}); what they had saved is kept, run the same command again to resume"
            )
            return PartialRun(message)
    raised: list[Exception] = [
        *(failure for failure in of_workers.values() if not isinstance(failure, StorageError)),
        *of_workers.values(),
    ]
    if raised:
        return raised[0]
    known = start_failure(getattr(error, "controller_failure", error))
    if isinstance(known, ArrowQuantError):
        return known
    reason = shortened(" ".join(str(known).split()), 300)
    return PartialRun(f"the workers of the training could not start ({reason}); run the same command again")
