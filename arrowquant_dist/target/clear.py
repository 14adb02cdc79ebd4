"""What is deleted at a target: a run of ours for `--overwrite`, and beside a finished dataset what lost.

Both delete only what has a name that this package gives, and only where a plan or a manifest of ours says that a run
was there.
"""

from __future__ import annotations

from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint, TargetConflict
from arrowquant_dist.target.index import INDEX_PATH
from arrowquant_dist.target.layout import PLAN_PATH, WEIGHTS_FOLDER, Listing
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.target.target import Target


def clear(target: Target, listing: Listing) -> Listing:
    """Deletes what is ours, for `--overwrite`; returns the files of others, which stay.

    TargetConflict if it never was ours.

    The manifest goes first: from then on this is no dataset. The plan goes last: until then a clear that
    was interrupted can be told from files of somebody else, and repeated. After the plan the manifest once
    more: one that another driver created meanwhile names parts that are gone; from now on it sees so itself.
    """
    state = target.state(listing)
    if state == "empty":
        return listing
    if state == "foreign":
        message = "the target holds files of others and no run; nothing was deleted, choose another one"
        raise TargetConflict(message, uri=target.store.uri)
    sidecars = _sidecars(target)
    decided = {PLAN_PATH, MANIFEST_PATH, INDEX_PATH, *listing.commits}
    target.store.delete([MANIFEST_PATH])
    target.store.delete([INDEX_PATH, *sidecars])
    target.store.delete(listing.commits)
    target.store.delete([path for path in listing.ours if path not in decided])
    target.store.delete([PLAN_PATH])
    target.store.delete([MANIFEST_PATH])
    return listing.cleared_of({*listing.ours, *sidecars})


def sweep(target: Target, manifest: Manifest, listing: Listing) -> list[str]:
    """Removes parts that the manifest does not name, and temporary files; returns their paths.

    Uploads of parts that were begun and not ended are given up too. With a manifest there whoever is at them has
    lost; before, attempts may be at work. IncompleteDataset where a part that it names is not there: others may be
    what is left of the dataset.
    """
    if listing.missing(manifest.parts):
        listing = target.look()  # the manifest may be younger than the listing
        target.refuse_missing_parts(manifest, listing)
    losers = listing.leftovers([part.path for part in manifest.parts])
    target.store.delete(losers)
    target.store.abandon_uploads(WEIGHTS_FOLDER)
    return losers


def _sidecars(target: Target) -> frozenset[str]:
    """Copied files: those that the manifest lists, and those of the plan; none where they cannot be read.

    A run that was killed while it published left the plan's without a manifest. They are ours: a file of
    others in their place was refused.
    """
    try:
        manifest = target.manifest()
        planned = target.planned() if manifest is None else None
    except (CorruptWeights, InvalidCheckpoint):
        return frozenset()
    if manifest is not None:
        return frozenset(sidecar.path for sidecar in manifest.sidecars)
    return planned.sidecars if planned is not None else frozenset()
