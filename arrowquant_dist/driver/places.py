"""A run's two places: how the driver reaches the target, that it is not the source, and the files that come along."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from arrowquant_dist.checkpoint.sidecars import published
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig, Storage
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.storage.base import ObjectInfo
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_local, redact
from arrowquant_dist.target.target import Target

_REQUESTS = 4  # times as many at a time as a worker's
_MOST_REQUESTS = 256  # what Transfer takes


def open_target(target: str, run: RunConfig) -> Target:
    """As workers reach it, with more requests in flight: the driver's are many and small.

    InvalidConfig for a URL with names that object stores and what is before them do not agree about: `a//b`, `.`, `..`
    are names of their own to some, and another way to say `a/b` to others.
    """
    scheme, _, path = target.partition("://")
    path = path.lstrip("/") if scheme == "memory" else path
    names = path.rstrip("/").split("/")
    if not is_local(target) and (path.endswith("//") or not {"", ".", ".."}.isdisjoint(names)):
        message = "the target has an empty name, `.` or `..` in it; spell it without them"
        raise InvalidConfig(message, uri=redact(target))
    return Target.open(target, _many_requests(run.target_storage))


def refuse_own_source(dataset: Target, read: Iterable[Checkpoint]) -> None:
    """A target that holds a file of what is read for it would be overwritten meanwhile: InvalidConfig."""
    folder = _real_place(dataset.store.uri)
    for file in (file for checkpoint in read for file in checkpoint.files):
        if any(place.startswith(f"{folder}/") for place in _real_places(redact(file.uri))):
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


def _real_places(uri: str) -> tuple[str, str]:
    """Where a file is, and where its bytes are: a local one may be a link into a cache."""
    folder, _, name = uri.rpartition("/")
    return f"{_real_place(folder)}/{name}", _real_place(uri)


def _real_place(uri: str) -> str:
    """One spelling of a place: local ones without links and `..`, so that no other name hides that two are one."""
    return str(Path(uri).resolve()) if is_local(uri) else uri.rstrip("/")
