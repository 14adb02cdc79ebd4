"""Deletes objects at a target: for `--overwrite` a whole run of ours, beside a finished dataset the losing attempts.

Any process that does this may be stopped before any request, and go on after another run has taken the target. What
it deletes then must not belong to that run:

- An object with a plain name is deleted only if it still is the one that was listed (`Store.delete_unchanged`). No
  two commits, indexes, reports, manifests or plans are ever equal: each contains the id of its run or attempt.
- An object with a name of its own belongs to a run or an attempt that is over, and no such name is used twice. To
  know that the run is over, the plan is read *after* the listing: nothing in the listing can belong to a run that
  began later. If the plan has changed since, everything is left as it is: TargetConflict.
- A copied file is the same in all runs with one source. On an object store, where versions follow from the content,
  it may therefore belong to another run, however carefully one looks. So a file that the new run copies too is left
  in place, and until there is a plan again a note records it and whatever else is left. (One case remains: of three
  runs, one that copies other files than the two others is stopped, and stopped within one request.)

`clear` deletes the manifest first: from then on this is not a dataset. It deletes the plan last: until then, what an
interrupted clear leaves can be recognized as a run's. Drivers and workers of the old run may still be writing, so
after its plan is gone the target is listed again until they have added nothing more. Whatever they write later has no
effect: the new run works around it when it publishes (publish.py), or skips it (commit.py). If everything stops
there, parts and commits without a plan remain; they are recognized by their names.
"""

from __future__ import annotations

from collections.abc import Iterable

from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint, NotFound, TargetConflict
from arrowquant_dist.target.layout import PLAN_PATH, WEIGHTS_FOLDER, Listing, new_note_path
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.target.target import NO_FILES, Files, Note, State, Target, being_cleared, overwritten

_LOOKS = 4  # maximum number of listings, while workers of the old run may still write


def clear(target: Target, listing: Listing, sidecars: Files = NO_FILES) -> Listing:
    """Deletes what is ours, for `--overwrite`; returns a listing of the foreign files, which stay.

    sidecars: the files that the new run copies; identical ones stay as well. Raises TargetConflict if the target
    never held a run of ours, or another run has taken it meanwhile; nothing of that run has been touched then.
    """
    if refuse_uncleared(target, listing, sidecars) == "empty":
        return listing
    for _ in range(_LOOKS):
        _clear_once(target, listing, sidecars)
        listing = target.look()
        if PLAN_PATH in listing or target.store.exists(PLAN_PATH):
            raise being_cleared(target.store.uri)
        if {*listing.ours} <= {*listing.notes}:
            break
    return listing.after_clear()


def refuse_uncleared(target: Target, listing: Listing, sidecars: Files = NO_FILES) -> State:
    """The state of the target; TargetConflict if `clear` would refuse it."""
    state = target.state(listing, sidecars)
    if state == "foreign":
        message = "the target holds files that are not a run's; nothing was deleted, choose another target"
        raise TargetConflict(message, uri=target.store.uri)
    return state


def sweep(target: Target, manifest: Manifest, listing: Listing) -> list[str]:
    """Removes parts that the manifest does not name, temporary files, and what earlier runs left when publishing;
    returns their paths.

    Uploads of parts that were begun but not completed are aborted too. With a manifest in place, whoever is uploading
    has lost; without one, attempts may still be at work. Raises IncompleteDataset if a part that the manifest names
    is not there, since other objects may then be all that is left of the dataset. Raises TargetConflict, and removes
    nothing, if the plan no longer belongs to the manifest.
    """
    if listing.missing(manifest.parts):
        listing = target.look()  # the manifest may be younger than the listing
        target.refuse_missing_parts(manifest, listing)
    losers = listing.leftovers([part.path for part in manifest.parts], manifest.run)
    uploads = target.store.begun_uploads(WEIGHTS_FOLDER)
    planned = target.planned()  # read after both: whatever they list is of this run or an earlier one
    if planned is None or not manifest.is_of(planned.identity):
        raise overwritten(target.store.uri)
    target.store.delete(losers)
    target.store.abandon(uploads)
    return losers


def _clear_once(target: Target, listing: Listing, sidecars: Files) -> None:
    """Deletes everything in the listing that is ours, unless another run has begun since the listing."""
    copied = _sidecars(target, listing)
    _refuse_changed_plan(target, listing)
    kept = {path for path in copied & sidecars.keys() if target.store.read(path) == sidecars[path]}
    own, decided = set(listing.own), {PLAN_PATH, MANIFEST_PATH, *listing.commits}
    _delete(target, listing, [MANIFEST_PATH])
    _delete(
        target, listing, [*(path for path in listing.ours if path not in own | decided), *(copied - kept)]
    )
    _delete(target, listing, listing.commits)
    target.store.delete([path for path in listing.own if path not in listing.notes])
    others = {path for path in listing.sizes if path not in copied} - {*listing.ours}
    noted = [new_note_path()] if kept or others else []
    for path in noted:
        target.store.create(path, Note(frozenset(kept), frozenset(others)).to_bytes())
    try:
        _delete(target, listing, [PLAN_PATH])
    except TargetConflict:
        target.store.delete(noted)
        raise
    target.store.delete(listing.notes)


def _delete(target: Target, listing: Listing, paths: Iterable[str]) -> None:
    """Deletes the paths that are in the listing. Raises TargetConflict if another object is there by now."""
    versions = {path: listing.versions[path] for path in paths if path in listing}
    if versions and target.store.delete_unchanged(versions):
        raise being_cleared(target.store.uri)


def _refuse_changed_plan(target: Target, listing: Listing) -> None:
    try:
        found = target.store.info(PLAN_PATH).version
    except NotFound:
        found = None
    if found != listing.versions.get(PLAN_PATH):
        raise being_cleared(target.store.uri)


def _sidecars(target: Target, listing: Listing) -> set[str]:
    """Paths of the copied files that are here: those that the manifest or the plan lists, and those noted by an
    interrupted clear; manifest and plan are ignored if they cannot be read.

    A run that was killed while it published has left the plan's sidecars without a manifest. They are ours: a foreign
    file in their place would have been refused.
    """
    copied = set(target.noted(listing).copied)
    try:
        manifest = target.manifest()
        planned = target.planned()
    except (CorruptWeights, InvalidCheckpoint):
        manifest = planned = None
    if manifest is not None:
        copied |= {sidecar.path for sidecar in manifest.sidecars}
    if planned is not None:
        copied |= planned.sidecars
    return {path for path in copied if path in listing}
