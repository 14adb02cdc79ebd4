"""What is deleted at a target: a run of ours for `--overwrite`, and beside a finished dataset what lost.

Any of those who do it may be stopped before any request, and go on when another run has taken the target. What they
delete then must not be that one's:

- What has a plain name is deleted only if it still is the object that was listed (`Store.delete_unchanged`). A commit,
  an index, a report, a manifest and a plan are never twice the same: each has in it who made it.
- What has a name of its own was of a run or an attempt that is over, and no name is given twice. To know that it is
  over, the plan is looked at *after* the listing: nothing in the listing is of a run that began later. Where the plan
  is another one than before, everything is left as it is: TargetConflict.
- A copied file is the same in all runs of one source, so on an object store, where versions follow from the content, it
  may be another run's however carefully one looks. So one that the new run copies too is left where it is, and a note
  says so, and what else stays, until there is a plan. (What remains: three runs, of which the stopped one copies other
  files than both others, stopped within one request.)

`clear` takes the manifest first: from then on this is no dataset. The plan goes last: until then what is left of a
clear that was interrupted is known to be a run's. Drivers and workers of the old run may still be at it, so the target
is looked at again when their plan is gone, until nothing more of theirs has come. What comes later they leave for
nothing: the new run gives way to it (publish.py), or passes it over (commit.py). Should everything stop there, parts
and commits without a plan remain; they are known by their names.
"""

from __future__ import annotations

from collections.abc import Iterable

from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint, NotFound, TargetConflict
from arrowquant_dist.target.layout import PLAN_PATH, WEIGHTS_FOLDER, Listing, new_note_path
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.target.target import NO_FILES, Files, Note, State, Target, being_cleared, overwritten

_LOOKS = 4  # at most, for what the old run's workers still leave


def clear(target: Target, listing: Listing, sidecars: Files = NO_FILES) -> Listing:
    """Deletes what is ours, for `--overwrite`; returns the files of others, which stay.

    sidecars: that the new run copies; equal ones stay as well. TargetConflict if it never was ours, or another run has
    taken the target meanwhile; then nothing of that one was touched.
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
    """TargetConflict where `clear` would refuse; else what is there."""
    state = target.state(listing, sidecars)
    if state == "foreign":
        message = "the target holds files of others and no run; nothing was deleted, choose another one"
        raise TargetConflict(message, uri=target.store.uri)
    return state


def sweep(target: Target, manifest: Manifest, listing: Listing) -> list[str]:
    """Removes parts that the manifest does not name, temporary files and what is left of earlier runs' publishing;
    returns their paths.

    Uploads of parts that were begun and not ended are given up too. With a manifest there whoever is at them has
    lost; before, attempts may be at work. IncompleteDataset where a part that it names is not there: others may be
    what is left of the dataset. TargetConflict, and nothing is removed, where the plan is not the manifest's any more.
    """
    if listing.missing(manifest.parts):
        listing = target.look()  # the manifest may be younger than the listing
        target.refuse_missing_parts(manifest, listing)
    losers = listing.leftovers([part.path for part in manifest.parts], manifest.run)
    uploads = target.store.begun_uploads(WEIGHTS_FOLDER)
    planned = target.planned()  # after both: what they know is of this run, or of one before it
    if planned is None or not manifest.is_of(planned.identity):
        raise overwritten(target.store.uri)
    target.store.delete(losers)
    target.store.abandon(uploads)
    return losers


def _clear_once(target: Target, listing: Listing, sidecars: Files) -> None:
    """All of the listing that is ours, if no other run has begun since it was taken."""
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
    """Of what was listed. TargetConflict where something else is there now."""
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
    """Copied files that are here: those that the manifest lists, and those of the plan, or of what an interrupted clear
    has noted; none where they cannot be read.

    A run that was killed while it published left the plan's without a manifest. They are ours: a file of
    others in their place was refused.
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
