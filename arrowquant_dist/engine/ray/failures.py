"""Interprets Ray's exceptions about workers."""

from __future__ import annotations

from typing import Any

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from arrowquant_dist.errors import ArrowQuantError, MissingDependency

_NO_IMPORT = ("failed to import", "No module named")
_NODE_LOST = "its node has died"


def raised(error: RayTaskError) -> Exception:
    """The exception that the worker raised; the exception that Ray raises here is derived from it."""
    cause = error.cause
    failure: Exception = cause if isinstance(cause, ArrowQuantError) else error
    return failure


def loss(error: RayError) -> str:
    """Why the worker is gone, in a few words."""
    if isinstance(error, OutOfMemoryError) or "memory monitor" in str(error):
        return "out of memory"
    if isinstance(error, ActorUnavailableError):
        return "out of reach"
    return "died" if isinstance(error, RayActorError) else type(error).__name__


def is_preempted(error: RayError) -> bool:
    return isinstance(error, RayActorError) and bool(error.preempted)


def is_of_node(error: RayError) -> bool:
    """Whether an actor is lost because its node is."""
    return isinstance(error, RayActorError) and _NODE_LOST in str(error)


def start_failure(error: RayError) -> Exception:
    """Why actors cannot be created, as an error of ours if it is a known one."""
    cause: Any = getattr(error, "cause", None)
    if isinstance(cause, ArrowQuantError):
        known: Exception = cause
        return known
    if any(mark in str(error) for mark in _NO_IMPORT):
        last = str(error).strip().splitlines()[-1].strip()
        message = (
            f"the cluster's nodes cannot import what a worker needs ({last[:300]}); install the same version of "
            "arrowquant-dist on them, or submit the job with its --working-dir"
        )
        return MissingDependency(message)
    failure: Exception = error
    return failure
