"""The two locations of a run: opens the target, refuses a target that holds the source, and reads the files to copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from arrowquant_dist.checkpoint.sidecars import published
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig, Storage
from arrowquant_dist.encodings.dataset import as_a_source
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig, listed
from arrowquant_dist.storage.base import ObjectInfo
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_ambiguous, lies_within, redact
from arrowquant_dist.target.manifest import LOST_SIDECAR, is_read
from arrowquant_dist.target.target import Target

_REQUESTS = 4  # concurrent requests of the driver, as a multiple of a worker's
_IF_MEANT = (
    "put the original back and pass the edited file to load_model as config=, or edit that of an export"
)
_MOST_REQUESTS = 256  # maximum that Transfer accepts


def open_target(target: str, run: RunConfig) -> Target:
    """Opens the target as workers do, but with more concurrent requests: the driver's requests are many and small.

    Raises InvalidConfig for a URL that `is_ambiguous`.
    """
    if is_ambiguous(target):
        message = "the target has an empty name, `.` or `..` in it; spell it without them"
        raise InvalidConfig(message, uri=redact(target))
    return Target.open(target, _many_requests(run.target_storage))


def refuse_own_source(dataset: Target, read: Iterable[Checkpoint]) -> None:
    """Raises InvalidConfig if a file that the run reads lies within the target, where it would be overwritten."""
    for file in (file for checkpoint in read for file in checkpoint.files):
        if lies_within(redact(file.uri), dataset.store.uri):
            message = f"the target holds the source itself ({redact(file.uri)}); choose another target"
            raise InvalidConfig(message)


def refuse_lost_side_files(checkpoint: Checkpoint, run: RunConfig) -> None:
    """Raises InvalidCheckpoint if the source is a dataset and a file that its manifest lists is gone: the new dataset
    would silently lack it too. Files written by people (.md) may be missing."""
    manifest = checkpoint.dataset.manifest if checkpoint.dataset is not None else None
    if manifest is None:
        return
    store = open_store(checkpoint.uri, run.source_storage)
    paths = manifest.read_sidecars
    gone = [path for path in paths if path not in checkpoint.sidecars and not store.exists(path)]
    if gone:
        raise InvalidCheckpoint(f"{listed(gone)}: {LOST_SIDECAR}", uri=checkpoint.uri)


def read_sidecars(checkpoint: Checkpoint, run: RunConfig) -> dict[str, bytes]:
    """Reads the small files that belong to the model (tokenizer, config, README), as the target will hold them.

    Raises SourceChanged if a file has changed since the run was planned, InvalidCheckpoint if the source is a dataset
    whose manifest lists other content. Files written by people (.md) may have been edited.
    """
    if not checkpoint.sidecars:
        return {}
    store = open_store(checkpoint.uri, run.source_storage)
    for path, file in zip(checkpoint.sidecars, checkpoint.sidecar_files, strict=True):
        store.pin(ObjectInfo(path, file.nbytes, file.version))
    contents = {path: store.read(path) for path in checkpoint.sidecars}
    store.confirm()
    manifest = checkpoint.dataset.manifest if checkpoint.dataset is not None else None
    if manifest is not None:
        with as_a_source():
            for path in filter(is_read, contents):
                manifest.check_sidecar(path, contents[path], store.url(path), _IF_MEANT)
    return {path: published(path, data, checkpoint) for path, data in contents.items()}


def _many_requests(storage: Storage) -> Storage:
    requests = min(_REQUESTS * storage.transfer.requests, _MOST_REQUESTS)
    return replace(storage, transfer=replace(storage.transfer, requests=requests))
