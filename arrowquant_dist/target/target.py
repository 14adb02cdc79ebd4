"""The target URI as a place: what is there, and how a run begins.

All of it is made so that any number of drivers and workers may be at it, and any of them may stop at any request:

- names are plain or own (layout.py): what has a plain one is created where nothing is, and never replaced;
- each plan has an id of its run, which commits and the manifest have too: what is of another run than the plan's is
  nothing, whoever left it, and a driver whose run was overwritten meanwhile notices and leaves (publish.py);
- only `clear` and the removal of what no manifest names delete what others made: an object with a plain name only if it
  is still the one that was seen, and any other only if its run or attempt is known to be over (clear.py).

A place remembers nothing: what a method found is what it returns, and what it needs of an earlier look it is given.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import pyarrow as pa

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import IncompleteDataset, NotFound, TargetConflict, are, counted, listed
from arrowquant_dist.export_names import RECORD_PATH
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.regular import obstacle
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.exports import marked
from arrowquant_dist.target.index import INDEX_PATH, is_index
from arrowquant_dist.target.layout import PLAN_PATH, Listing, links, odd_places
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.target.plan_file import PlannedRun, RunIdentity, plan_file, read_plan_file, with_run_id

State = Literal["empty", "started", "finished", "left", "foreign"]
Files = Mapping[str, bytes]  # {path under the target: content}
NO_FILES: Files = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Note:
    """What a clear leaves at a target until a plan is there again. copied: from the old source and the new one; others:
    what is not ours."""

    copied: frozenset[str]
    others: frozenset[str]

    @classmethod
    def of(cls, store: Store, path: str) -> Self:
        """Nothing, where the note is gone or cannot be read."""
        try:
            values = parse_json(store.read(path))
            copied, others = (frozenset(map(str, values[name])) for name in ("copied", "others"))
        except (NotFound, ValueError, KeyError, TypeError):
            return cls(frozenset(), frozenset())
        return cls(copied, others)

    def to_bytes(self) -> bytes:
        return json.dumps({"copied": sorted(self.copied), "others": sorted(self.others)}).encode()


class Target:
    """A dataset being made, or made. All state is at the URI: any number of these may be open on one."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def open(cls, uri: str, storage: Storage = DEFAULT_STORAGE) -> Target:
        """The target at `uri`. No requests."""
        return cls(open_store(uri, storage))

    def look(self, copied: Iterable[str] = ()) -> Listing:
        """What is there now: one listing, of which everything else here is given what it needs to know.

        TargetConflict where the target, or a folder it is in, is a file, or a link that leads nowhere; and where
        something else than a file has the name of one that a run writes, or copies to these paths.
        """
        self._refuse_links_to_nothing()
        self._refuse_odd_places(copied)
        listing = Listing.of(self.store)
        if "" in listing:
            raise TargetConflict(
                "a file is here, and a folder is needed; choose an empty or new one", uri=self.store.uri
            )
        if not listing.sizes and is_local(self.store.uri):
            for folder in Path(self.store.uri).parents:
                if os.path.isfile(folder):  # noqa: PTH113 - as links
                    message = f"it lies in {folder}, which is a file; choose another place"
                    raise TargetConflict(message, uri=self.store.uri)
        return listing

    def _refuse_links_to_nothing(self) -> None:
        roots = [Path(self.store.uri)] if is_local(self.store.uri) else []
        for path in (*links(self.store), *(root for root in roots if os.path.islink(root))):  # noqa: PTH114 - as links
            if not path.exists():
                message = f"{path} is a link to {path.readlink()}, where nothing is; make that folder"
                raise TargetConflict(f"{message}, or remove the link", uri=self.store.uri)

    def _refuse_odd_places(self, copied: Iterable[str]) -> None:
        odd = odd_places(self.store)
        root = Path(self.store.uri)
        in_the_way = (obstacle(root, path) for path in copied) if is_local(self.store.uri) else ()
        odd += [(place.relative_to(root).as_posix(), what) for place, what in filter(None, in_the_way)]
        for path, what in odd:
            message = (
                f"this is {what} in the place of one that a run writes; remove it, or choose another target"
            )
            raise TargetConflict(message, uri=self.store.url(path))

    def state(self, listing: Listing, sidecars: Files = NO_FILES) -> State:
        """`finished`: a manifest of ours; `started`: a plan; `left`: none of these, but what a run of ours leaves when
        both are gone, and nothing else; `foreign`: other files. sidecars: that a new run copies; equal ones are left.
        """
        if MANIFEST_PATH in listing and self._is_manifest_ours():
            return "finished"
        if PLAN_PATH in listing:
            return "started"
        if not listing.foreign:
            return "empty"
        return "left" if self._is_left(listing, sidecars) else "foreign"

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
            self.store.delete(listing.notes)  # the plan says now which files were copied
            return PlannedRun.of(table)
        planned = self.planned()
        if planned is None:  # another driver's --overwrite removed it just now
            raise being_cleared(self.store.uri)
        return planned

    def refuse_foreign(self, listing: Listing, sidecars: Files = NO_FILES) -> None:
        """TargetConflict, naming a few, where the target holds files of others, or what is left, and no run."""
        state = self.state(listing, sidecars)
        if state == "left":
            message = (
                "the target holds parts or commits of a run whose plan is gone: it was being overwritten when that "
                "was stopped; --overwrite clears them"
            )
            raise TargetConflict(message, uri=self.store.uri)
        if state == "foreign":
            is_export = RECORD_PATH in listing or marked(self.store, listing.foreign) is not None
            what = "an export" if is_export else "other files"
            message = f"the target holds {what} ({listed(listing.foreign)}); choose an empty or new folder"
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
            in_dataset = MANIFEST_PATH in listing
            found = counted(len(missing), "part") + (" of the dataset" if in_dataset else "")
            hint = "quantize with --repair" if in_dataset else "run the same command again"
            message = f"{found} {are(len(missing))} missing or cut ({listed(missing)}); {hint}"
            raise IncompleteDataset(message, uri=self.store.uri)

    def refuse_missing_files(self, manifest: Manifest, listing: Listing) -> None:
        """IncompleteDataset where index, report or a copied file is not there in its size."""
        files = (manifest.index, *manifest.sidecars, *manifest.report)
        if listing.missing(files):
            listing = (
                self.look()
            )  # one that was at work when they were created may have passed their names before
        if missing := listing.missing(files):
            found = f"{counted(len(missing), 'file')} of the dataset {are(len(missing))}"
            message = f"{found} missing or of another size ({listed(missing)})"
            raise IncompleteDataset(f"{message}; quantize with --repair", uri=self.store.uri)

    def is_of(self, run: RunIdentity) -> bool:
        """Whether the plan at the target, read anew, is that of this run."""
        planned = self.planned()
        return planned is not None and planned.identity == run

    def noted(self, listing: Listing) -> Note:
        """What an interrupted clear says that it has left."""
        notes = [Note.of(self.store, path) for path in listing.notes]
        return Note(
            frozenset().union(*(note.copied for note in notes)),
            frozenset().union(*(note.others for note in notes)),
        )

    def _is_left(self, listing: Listing, sidecars: Files) -> bool:
        has_index = INDEX_PATH in listing and is_index(self.store.read(INDEX_PATH))
        if not (listing.traces or has_index) or (INDEX_PATH in listing.foreign and not has_index):
            return False
        noted = self.noted(listing)
        others = (path for path in listing.strange if path not in noted.copied | noted.others)
        return all(path in sidecars and self.store.read(path) == sidecars[path] for path in others)

    def _is_manifest_ours(self) -> bool:
        """Whether it says so; a damaged one beside a plan of ours is still no file of somebody else."""
        try:
            values = parse_json(self.store.read(MANIFEST_PATH))
        except (ValueError, NotFound):
            return False
        return isinstance(values, dict) and values.get("format") == "arrowquant"


def overwritten(uri: str) -> TargetConflict:
    return TargetConflict("the run was overwritten by another one; nothing of this one counts", uri=uri)


def being_cleared(uri: str) -> TargetConflict:
    return TargetConflict(
        "another run is clearing the target, or has begun there meanwhile; run one at a time", uri=uri
    )


def other_sidecar(url: str) -> TargetConflict:
    message = (
        "this file is not the source's; remove it, or choose another target, and run the same command again"
    )
    return TargetConflict(message, uri=url)
