"""The publishing transaction: creating manifest.json turns committed parts into a dataset.

There are two steps, since the report is written last and says how long the rest took: `prepare` puts the index and
the sidecars in their places, `publish` the report and then the manifest. Any number of drivers may do this at once,
of one run or of runs that overwrote each other, and any of them may stop anywhere and go on at any later time, or
never. Why this is safe:

Drivers of one run
- The manifest is created, never replaced: the first one counts for everybody, whoever made it. Everything that it
  names is there before it: the parts in their sizes, the index, the report, the sidecars.
- Index, sidecars and report are only created, too. An index that is there already with the same rows belongs to this
  run, whoever wrote it (other library versions write other bytes): it stays, and the manifest names it. The same
  holds for a report file that contains the run's id. So the reports of two drivers may be mixed; they agree in
  everything except how long their runs took.
- Sidecars that differ belong to somebody else and are refused.
- The outcome of a create whose response was lost is unknown: what is there afterwards decides.

Drivers of different runs
- Nothing is overwritten and nothing with a plain name is deleted, so a driver that goes on after another run has
  finished changes nothing of it: its creates find their names taken.
- If a name is taken by another run's index or report, the driver uses a name of its own (layout.py), and the manifest
  says which. It does the same if an index of other rows is in place, which this run wrote before one of its parts was
  lost. Readers take these names from the manifest.
- A manifest counts only for its own run's plan. The plan is read before anything is written, and once more after the
  manifest (in `sweep`): if it is another run's by then, parts may be gone. The driver reports this, and removes its
  manifest, index and report, each if it is still the same object.
- It may also stop for ever between the two. Then its manifest stands in the way of the run whose plan counts. That
  run's driver finds the manifest and reads the plan once more; since the plan is still its own, the manifest's run is
  over for good, so it deletes that very object and creates its own. Readers recognize such a manifest
  (`Manifest.refuse_cleared`).

Two cases remain. Where check and deletion are not one step (`Store.delete_unchanged`: Google's and Azure's clients,
S3 servers without conditional deletes), a driver that is stopped between the two while another run publishes removes
the other's manifest; the same command writes it again. And a sidecar that a stopped driver creates late stays beside
the newer run's files if that run copies none of this name; if it copies one, the late one is refused, and --overwrite
clears it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from arrowquant_dist.errors import CorruptWeights, NotFound, StorageError, TargetConflict
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.clear import sweep
from arrowquant_dist.target.index import INDEX_PATH, read_index
from arrowquant_dist.target.layout import Listing, own_index_path, own_report_path
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest, StoredFile
from arrowquant_dist.target.plan_file import RunIdentity
from arrowquant_dist.target.target import Files, Target, being_cleared, other_sidecar, overwritten

_TRIES = 8  # to create the manifest; each but the first follows the removal of another run's


@dataclass(frozen=True, slots=True)
class Draft:
    """A dataset that lacks only its report and its manifest.

    run: the run that it belongs to. listing: taken after the last commit. manifest: the one to be published; names
    the index that is in place. winner: the manifest of another driver of the run that was first; nothing was written
    then.
    """

    run: RunIdentity
    listing: Listing
    manifest: Manifest
    winner: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """The result of publishing. manifest: the one that counts. is_ours: whether this driver made it; otherwise another
    one did, and its report is in place."""

    manifest: Manifest
    is_ours: bool


def prepare(
    target: Target, run: RunIdentity, manifest: Manifest, index: bytes, sidecars: Files, listing: Listing
) -> Draft:
    """Puts the index and the sidecars in their places.

    run: as `Target.start` returned it. manifest: made from all committed receipts, so that every driver of a plan
    publishes the same rows. sidecars: the files that the manifest lists. listing: taken after the last commit. Raises
    IncompleteDataset if a part is not there, TargetConflict if the run was overwritten meanwhile or a sidecar's place
    is taken.
    """
    manifest = replace(manifest, run=run.name)
    winner = target.manifest()
    if winner is not None and winner.is_of(run):
        return Draft(run, listing, manifest, winner=winner)
    if not target.is_of(run):
        raise _replaced(target, run, winner)
    target.refuse_missing_parts(manifest, listing)
    stored = _place(target.store, INDEX_PATH, index, own_index_path(run.name, index), _has_the_rows_of(index))
    for path, data in sidecars.items():
        if _create(target.store, path, data) != data:
            raise other_sidecar(target.store.url(path))
    return Draft(run, listing, replace(manifest, index=stored))


def publish(target: Target, draft: Draft, report: Files) -> Published:
    """Writes the report and then the manifest, which makes the dataset; then removes the losing attempts.

    report: files that contain the run's id. Returns the manifest that counts, which is another driver's if that
    driver of the run was first. Raises TargetConflict if the run was overwritten meanwhile.
    """
    counting, manifest = draft.winner, draft.manifest
    try:
        if counting is None:
            manifest = replace(manifest, report=_place_report(target.store, draft.run, report))
            counting = _create_manifest(target, draft.run, manifest)
        sweep(target, counting, draft.listing)
    except TargetConflict:
        if draft.winner is None and not target.is_of(draft.run):
            _take_back(target, manifest)
        raise
    is_ours = draft.winner is None and counting.to_bytes() == manifest.to_bytes()
    return Published(counting, is_ours)


def _place_report(store: Store, run: RunIdentity, report: Files) -> tuple[StoredFile, ...]:
    def is_of_run(found: bytes) -> bool:
        return run.name.encode() in found

    return tuple(
        _place(store, path, data, own_report_path(run.name, path), is_of_run) for path, data in report.items()
    )


def _place(
    store: Store, path: str, data: bytes, own_path: str, is_of_run: Callable[[bytes], bool]
) -> StoredFile:
    """Creates the file at `path`, or at `own_path` if `path` holds another run's; returns the file that this run
    refers to. `own_path` can only hold this run's."""
    found = _create(store, path, data)
    if found == data or is_of_run(found):
        return StoredFile.of(path, found)
    return StoredFile.of(own_path, _create(store, own_path, data))


def _has_the_rows_of(index: bytes) -> Callable[[bytes], bool]:
    def has_them(found: bytes) -> bool:
        try:
            return read_index(found) == read_index(index)
        except CorruptWeights:
            return False

    return has_them


def _create(store: Store, path: str, data: bytes) -> bytes:
    """Creates the object unless there is one; returns what is at `path` from then on: `data`, or the older object."""
    try:
        if store.create(path, data):
            return data
    except StorageError:
        # The write may have landed although its response was lost; then something is there.
        if not store.exists(path):
            raise
    try:
        return store.read(path)
    except NotFound as error:
        raise being_cleared(store.uri) from error


def _create_manifest(target: Target, run: RunIdentity, manifest: Manifest) -> Manifest:
    """Creates this run's manifest unless it has one; returns the one that counts. Raises TargetConflict if another
    run's counts."""
    store = target.store
    for _ in range(_TRIES):
        try:
            if store.create(MANIFEST_PATH, manifest.to_bytes()):
                return manifest
        except StorageError:
            # The write may have landed although its response was lost; then there is a manifest, ours or another.
            if not store.exists(MANIFEST_PATH):
                raise
        try:
            data, version = store.read_versioned(MANIFEST_PATH)
        except NotFound:  # its driver took it back just now
            continue
        found = Manifest.from_bytes(data, store.url(MANIFEST_PATH))
        if found.is_of(run):
            return found
        if not target.is_of(run):
            raise _replaced(target, run, found)
        store.delete_unchanged({MANIFEST_PATH: version})
    raise being_cleared(store.uri)


def _take_back(target: Target, manifest: Manifest) -> None:
    """Deletes what this driver has left of a run that was overwritten: manifest, index and report, each if it is
    still there. Another run's objects are never equal to them: an index names its attempts' parts, the others contain
    the run's id."""
    store = target.store
    for file in (StoredFile.of(MANIFEST_PATH, manifest.to_bytes()), manifest.index, *manifest.report):
        try:
            data, version = store.read_versioned(file.path)
        except NotFound:
            continue
        if StoredFile.of(file.path, data) == file:
            store.delete_unchanged({file.path: version})


def _replaced(target: Target, run: RunIdentity, winner: Manifest | None) -> TargetConflict:
    """The error that says that the target belongs to another run by now. winner: the manifest that is there."""
    if winner is None or winner.fingerprint == run.fingerprint:
        return overwritten(target.store.uri)
    message = "another plan's dataset was published here meanwhile; choose another target"
    return TargetConflict(message, uri=target.store.uri)
