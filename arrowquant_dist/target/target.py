"""The target URI as a place: what is there, and how a run begins.

All of it is made so that any number of drivers and workers may be at it, and any of them may stop at any request:

- parts have names of their own, and what decides (plan, commits, index, sidecars, manifest) is created, never replaced;
- each plan has an id of its run: a driver whose run was overwritten meanwhile takes its manifest back (publish.py);
- only `clear` and the removal of what no manifest names delete what others made (clear.py).

A place remembers nothing: what a method found is what it returns, and what it needs of an earlier look it is given.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import IncompleteDataset, NotFound, TargetConflict, listed
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.layout import PLAN_PATH, Listing
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.target.plan_file import PlannedRun, RunIdentity, plan_file, read_plan_file, with_run_id

State = Literal["empty", "started", "finished", "foreign"]
Files = Mapping[str, bytes]  # {path under the target: content}


class Target:
    """A dataset being made, or made. All state is at the URI: any number of these may be open on one."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def open(cls, uri: str, storage: Storage = DEFAULT_STORAGE) -> Target:
        """The target at `uri`. No requests."""
        return cls(open_store(uri, storage))

    def look(self) -> Listing:
        """What is there now: one listing, of which everything else here is given what it needs to know.

        TargetConflict where the target, or a folder it is in, is a file.
        """
        listing = Listing.of(self.store)
        if "" in listing:
            raise TargetConflict("the target is a file; choose an empty or new folder", uri=self.store.uri)
        if not listing.sizes and is_local(self.store.uri):
            for folder in Path(self.store.uri).parents:
                if folder.is_file():
                    message = f"the target lies in {folder}, which is a file; choose another target"
                    raise TargetConflict(message, uri=self.store.uri)
        return listing

    def state(self, listing: Listing) -> State:
        """`finished`: a manifest of ours; `started`: a plan; `foreign`: none of these, but other files."""
        if MANIFEST_PATH in listing and self._is_manifest_ours():
            return "finished"
        if PLAN_PATH in listing:
            return "started"
        return "foreign" if listing.foreign else "empty"

    def manifest(self) -> Manifest | None:
        """The manifest of a finished target, validated; else None."""
        try:
            return Manifest.read(self.store)
        except NotFound:
            return None

    def planned(self) -> PlannedRun | None:
        """The plan at the target, or None. CorruptWeights where it cannot be read."""
        try:
            data = self.store.read(PLAN_PATH)
        except NotFound:
            return None
        return PlannedRun.of(read_plan_file(data, self.store.url(PLAN_PATH)))

    def current(self) -> RunIdentity:
        """Whose run the target holds now. IncompleteDataset where there is none."""
        planned = self.planned()
        if planned is None:
            message = "no run was started here; run the quantize command"
            raise IncompleteDataset(message, uri=self.store.uri)
        return planned.identity

    def start(self, plan_table: pa.Table, listing: Listing) -> PlannedRun:
        """Makes this the target's plan unless it has one; returns the plan that counts.

        The caller compares their fingerprints. TargetConflict where the target holds files of others, unless
        `clear` has just left them there.
        """
        self.refuse_foreign(listing)
        if PLAN_PATH in listing and (planned := self.planned()) is not None:
            return planned
        table = with_run_id(plan_table, json.dumps(uuid.uuid4().hex).encode())
        if self.store.create(PLAN_PATH, plan_file(table)):
            return PlannedRun.of(table)
        planned = self.planned()
        if planned is None:  # another driver's --overwrite removed it just now
            raise being_cleared(self.store.uri)
        return planned

    def refuse_foreign(self, listing: Listing) -> None:
        """TargetConflict, naming a few, where the target holds files of others and no run."""
        if self.state(listing) == "foreign":
            message = (
                f"the target holds other files ({listed(listing.foreign)}); choose an empty or new folder"
            )
            raise TargetConflict(message, uri=self.store.uri)

    def refuse_other_sidecars(self, sidecars: Files, listing: Listing) -> None:
        """TargetConflict where a file lies in a sidecar's place that is not it: it would have to be replaced."""
        for path in sidecars.keys() & listing.sizes.keys():
            if self.store.read(path) != sidecars[path]:
                raise other_sidecar(self.store.url(path))

    def refuse_missing_parts(self, manifest: Manifest, listing: Listing) -> None:
        """IncompleteDataset where a part that the manifest names is not there in its size."""
        missing = listing.missing(manifest.parts)
        if missing:
            shown = listed(missing)
            message = f"{len(missing)} parts are missing or cut ({shown}); run the same command again"
            if MANIFEST_PATH in listing:
                message = f"{len(missing)} parts of the dataset are missing or cut ({shown}); quantize with --overwrite"
            raise IncompleteDataset(message, uri=self.store.uri)

    def _is_manifest_ours(self) -> bool:
        """Whether it says so; a damaged one beside a plan of ours is still no file of somebody else."""
        try:
            values = parse_json(self.store.read(MANIFEST_PATH))
        except (ValueError, NotFound):
            return False
        return isinstance(values, dict) and values.get("format") == "arrowquant"


def being_cleared(uri: str) -> TargetConflict:
    return TargetConflict("another run is clearing the target; run one at a time", uri=uri)


def other_sidecar(url: str) -> TargetConflict:
    message = (
        "this file is not the source's; remove it, or choose another target, and run the same command again"
    )
    return TargetConflict(message, uri=url)
