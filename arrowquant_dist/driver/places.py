"""A run's two places: how the driver reaches the target, that it is not the source, and the files that come along."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from arrowquant_dist.checkpoint.sidecars import published
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig, Storage
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.storage.base import ObjectInfo
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_ambiguous, real_place, real_places, redact
from arrowquant_dist.target.target import Target

_REQUESTS = 4  # times as many at a time as a worker's
_MOST_REQUESTS = 256  # what Transfer takes


def open_target(target: str, run: RunConfig) -> Target:
    """As workers reach it, with more requests in flight: the driver's are many and small.

    InvalidConfig for a URL that `is_ambiguous`.
    """
    if is_ambiguous(target):
        message = "the target has an empty name, `.` or `..` in it; spell it without them"
        raise InvalidConfig(message, uri=redact(target))
    return Target.open(target, _many_requests(run.target_storage))


def refuse_own_source(dataset: Target, read: Iterable[Checkpoint]) -> None:
    """A target that holds a file of what is read for it would be overwritten meanwhile: InvalidConfig."""
    folder = real_place(dataset.store.uri)
    for file in (file for checkpoint in read for file in checkpoint.files):
        if any(place.startswith(f"{folder}/") for place in real_places(redact(file.uri))):
            message = f"the target holds the source itself ({redact(file.uri)}); choose another target"
            raise InvalidConfig(message)


def read_sidecars(checkpoint: Checkpoint, run: RunConfig) -> dict[str, bytes]:
    """The small files that belong to the model, as the target gets them: tokenizer, config, README.

    SourceChanged where one is not what it was when the run was planned.
    """
    if not checkpoint.sidecars:
        return {}
    store = open_store(checkpoint.uri, run.source_storage)
    for path, file in zip(checkpoint.sidecars, checkpoint.sidecar_files, strict=True):
        store.pin(ObjectInfo(path, file.nbytes, file.version))
    sidecars = {path: published(path, store.read(path), checkpoint) for path in checkpoint.sidecars}
    store.confirm()
    return sidecars


def _many_requests(storage: Storage) -> Storage:
    requests = min(_REQUESTS * storage.transfer.requests, _MOST_REQUESTS)
    return replace(storage, transfer=replace(storage.transfer, requests=requests))
