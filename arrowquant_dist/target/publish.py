"""The publishing transaction: committed parts become a dataset by one create, that of manifest.json.

Two steps, since the report is written last and tells how long the rest took: `prepare` puts index and sidecars in
their places, `publish` the report and then the manifest. Why any number of drivers may be at it, of one run or of runs
that overwrote each other, and any of them may stop anywhere, go on at any time later, or never:

Drivers of one run
- The manifest is created, never replaced: the first one counts for everybody, whoever made it. All that it names lies
  there before: parts in their sizes, the index, the report, the sidecars.
- Index, sidecars and report are created too. What lies in an index's place and has the same rows is the run's, whoever
  wrote it (another version writes other bytes): it stays, and is named. So is a file of the report that has the run's
  id in it. Two drivers' reports may be mixed, then: they say the same, but for how long their runs took.
- Sidecars that differ belong to somebody else and are refused.
- The outcome of a create whose answer got lost is unknown: what is there then decides.

Drivers of different runs
- Nothing is written over and nothing with a plain name is deleted, so a driver that goes on when another run has
  finished changes nothing of it: its creates find their names taken.
- Where a name is taken by another run's index or report, the driver takes one of its own (layout.py), and the manifest
  says which. So it does for an index of other rows, which this run left before a part of it was lost. Readers ask the
  manifest for these names.
- A manifest counts for the plan of its run alone. The plan is read before anything is written, and once more after the
  manifest (in `sweep`): if it is another run's now, parts may be gone. The driver says so, and takes its manifest,
  index and report back, each if that is the object still there.
- It may also stop for ever between the two. Then its manifest stands in the way of the run whose plan counts. The
  driver of that one finds it, reads the plan once more, which is its own still, so the manifest's run is over for good:
  it deletes that very object, and creates its own. Readers are told of such a manifest (`Manifest.refuse_cleared`).

What remains: where looking and deleting is not one step (`Store.delete_unchanged`: Google's and Azure's clients, S3
servers without conditional deletes), a driver that is stopped between the two while another run publishes takes the
other's manifest away; the same command makes it anew. And a sidecar that a stopped driver creates late lies beside the
newer run's where that copies none of this name; where it copies another one it is refused, and --overwrite clears it.
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

_TRIES = 8  # to create the manifest; each but the first one after another run's was deleted


@dataclass(frozen=True, slots=True)
class Draft:
    """A dataset that lacks only its report and its manifest.

    run: whose it is. listing: taken after the last commit. manifest: to be published; names the index that is there.
    winner: the manifest of a driver of the run that was first; then nothing was written.
    """

    run: RunIdentity
    listing: Listing
    manifest: Manifest
    winner: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """manifest: the one that counts. is_ours: this driver made it; else another one did, and its report is there."""

    manifest: Manifest
    is_ours: bool


def prepare(
    target: Target, run: RunIdentity, manifest: Manifest, index: bytes, sidecars: Files, listing: Listing
) -> Draft:
    """Puts index and sidecars in their places.

    run: as `Target.start` returned it. manifest: of all committed receipts, so that every driver of a plan publishes
    the same rows. sidecars: those that it lists. listing: taken after the last commit. IncompleteDataset where a part
    is not there, TargetConflict where the run was overwritten meanwhile, or a sidecar's place is taken.
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
    """Writes the report and makes the dataset; then removes what lost.

    report: files that have the run's id in them. Returns the manifest that counts, which is that of another driver of
    the run if that was first. TargetConflict where the run was overwritten meanwhile.
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
    """What is at `path` from now on if that is this run's, else what is at `own_path`, which nobody else's can be."""
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
    """What is at `path` from now on: `data`, or what was there already."""
    try:
        if store.create(path, data):
            return data
    except StorageError:
        # The write may have landed and its answer got lost; then something is there.
        if not store.exists(path):
            raise
    try:
        return store.read(path)
    except NotFound as error:
        raise being_cleared(store.uri) from error


def _create_manifest(target: Target, run: RunIdentity, manifest: Manifest) -> Manifest:
    """The manifest of this run that counts from now on. TargetConflict where another run's does."""
    store = target.store
    for _ in range(_TRIES):
        try:
            if store.create(MANIFEST_PATH, manifest.to_bytes()):
                return manifest
        except StorageError:
            # The write may have landed and its answer got lost. If so there is a manifest, whoever's it is.
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
    """Deletes what this driver has left of a run that was overwritten: manifest, index and report, each if it is still
    there. None of another run's is the same: an index names its attempts' parts, the others have its id."""
    store = target.store
    for file in (StoredFile.of(MANIFEST_PATH, manifest.to_bytes()), manifest.index, *manifest.report):
        try:
            data, version = store.read_versioned(file.path)
        except NotFound:
            continue
        if StoredFile.of(file.path, data) == file:
            store.delete_unchanged({file.path: version})


def _replaced(target: Target, run: RunIdentity, winner: Manifest | None) -> TargetConflict:
    """The run is no longer the target's. winner: the manifest that is there."""
    if winner is None or winner.fingerprint == run.fingerprint:
        return overwritten(target.store.uri)
    message = "another plan's dataset was published here meanwhile; choose another target"
    return TargetConflict(message, uri=target.store.uri)
