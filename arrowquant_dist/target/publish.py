"""The publishing transaction: committed parts become a dataset by one create, that of manifest.json.

Two steps, since the report is written last and tells how long the rest took: `prepare` puts index and sidecars in
their places, `publish` the report and then the manifest. Why any number of drivers of one plan may be at it, and any of
them may stop anywhere:

- The manifest is created, never replaced: the first one counts for everybody, whoever made it. All that it names lies
  there before: parts in their sizes, the index, the sidecars.
- The index is created too. Drivers of one plan publish the same rows, in other bytes perhaps (another version wrote
  them): an index of the same rows that lies there stays, and is named. One of other rows is a leftover (a part was lost
  since): it gives way, and comes back should its driver have been the first after all. So whichever manifest counts,
  the index that it names is there.
- Sidecars are created. One that differs belongs to somebody else and is refused.
- The outcome of a create whose answer got lost is unknown: what is there then decides.
- A run may be overwritten while its driver is here. The plan's run id is read before anything is written, and once more
  after the manifest: if it is another one now, parts may be gone, and the manifest is taken back. `clear` deletes the
  plan and then the manifest once more, so of these two at least one sees the other. (A driver that sleeps between its
  manifest and that second look, while another run replaces its own and publishes, takes the other's manifest away.)
- Report files are written, not created: the last driver's stay. They name nothing and decide nothing.

Index and report have one name for all runs (`INDEX_PATH`, `report/`). `_place_index` alone decides where the index
goes, and `publish` takes the report's paths as they come.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arrowquant_dist.errors import CorruptWeights, NotFound, StorageError, TargetConflict
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.clear import sweep
from arrowquant_dist.target.index import INDEX_PATH, read_index
from arrowquant_dist.target.layout import Listing
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest, StoredFile
from arrowquant_dist.target.plan_file import RunIdentity
from arrowquant_dist.target.target import Files, Target, being_cleared, other_sidecar


@dataclass(frozen=True, slots=True)
class Draft:
    """A dataset that lacks only its report and its manifest.

    run: whose it is. listing: taken after the last commit. manifest: to be published; names the index that is there.
    replaced: another driver's index, which gave way. winner: the manifest of a driver that was first; then nothing
    was written.
    """

    run: RunIdentity
    listing: Listing
    manifest: Manifest
    replaced: bytes | None = None
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
    is not there, TargetConflict where the run was overwritten meanwhile, a sidecar's place is taken, or the dataset
    there is of another plan.
    """
    winner = target.manifest()
    if winner is not None:
        _refuse_other_plan(target, winner, run)
        return Draft(run, listing, manifest, winner=winner)
    target.refuse_missing_parts(manifest, listing)
    _refuse_overwritten(target, run)
    stored, replaced = _place_index(target.store, index)
    for path, data in sidecars.items():
        if _create(target.store, path, data) != data:
            raise other_sidecar(target.store.url(path))
    return Draft(run, listing, replace(manifest, index=stored), replaced)


def publish(target: Target, draft: Draft, report: Files) -> Published:
    """Writes the report and makes the dataset; then removes what lost.

    Returns the manifest that counts, which is another driver's if that was first. TargetConflict where the run was
    overwritten meanwhile, or the dataset there is of another plan.
    """
    counting = draft.winner
    if counting is None:
        for path, data in report.items():
            target.store.write(path, data)
        counting = _create_manifest(target, draft.manifest)
    is_ours = draft.winner is None and counting.to_bytes() == draft.manifest.to_bytes()
    if is_ours:
        _keep_unless_overwritten(target, draft.run)
    elif draft.replaced is not None and StoredFile.of(INDEX_PATH, draft.replaced) == counting.index:
        target.store.write(INDEX_PATH, draft.replaced)
    _refuse_other_plan(target, counting, draft.run)
    sweep(target, counting, draft.listing)
    return Published(counting, is_ours)


def _place_index(store: Store, index: bytes) -> tuple[StoredFile, bytes | None]:
    """The index that is there from now on, and the bytes of one that had to give way to it, if any."""
    found = _create(store, INDEX_PATH, index)
    if found == index or _has_the_rows_of(found, index):
        return StoredFile.of(INDEX_PATH, found), None
    store.write(INDEX_PATH, index)
    return StoredFile.of(INDEX_PATH, index), found


def _has_the_rows_of(found: bytes, index: bytes) -> bool:
    try:
        return read_index(found) == read_index(index)
    except CorruptWeights:
        return False


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


def _create_manifest(target: Target, manifest: Manifest) -> Manifest:
    """The manifest that counts from now on."""
    try:
        if target.store.create(MANIFEST_PATH, manifest.to_bytes()):
            return manifest
    except StorageError:
        # The write may have landed and its answer got lost. If so there is a manifest, whoever's it is.
        found = target.manifest()
        if found is None:
            raise
        return found
    return Manifest.read(target.store)


def _keep_unless_overwritten(target: Target, run: RunIdentity) -> None:
    """Takes the manifest back where the run was overwritten meanwhile: parts may be gone, so this is no dataset."""
    planned = target.planned()
    if planned is None or planned.identity != run:
        target.store.delete([MANIFEST_PATH])
        raise _overwritten(target)


def _refuse_overwritten(target: Target, run: RunIdentity) -> None:
    planned = target.planned()
    if planned is None or planned.identity != run:
        raise _overwritten(target)


def _overwritten(target: Target) -> TargetConflict:
    message = "the run was overwritten by another one; nothing of this one counts"
    return TargetConflict(message, uri=target.store.uri)


def _refuse_other_plan(target: Target, manifest: Manifest, run: RunIdentity) -> None:
    if manifest.fingerprint != run.fingerprint:
        message = "another plan's dataset was published here meanwhile; choose another target"
        raise TargetConflict(message, uri=target.store.uri)
