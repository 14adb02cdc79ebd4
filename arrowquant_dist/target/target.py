"""The target URI as a place: what it holds, and how a run begins there.

Any number of drivers and workers may use a target at once, and any of them may stop at any request. Why this is safe:

- Names are plain or own (layout.py): an object with a plain name is created only where there is none, and never
  replaced.
- Each plan has the id of its run, which commits and the manifest contain too: objects of another run than the plan's
  do not count, whoever left them, and a driver whose run was overwritten meanwhile notices it and leaves
  (publish.py).
- Only `clear` and the removal of objects that no manifest names delete what others made: an object with a plain name
  only if it is still the one that was seen, and any other only if its run or attempt is known to be over (clear.py).

A Target keeps no state: methods return what they found, and take what they need to know from an earlier listing as an
argument.
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
    """What a clear records at a target until there is a plan again. copied: files left in place that both the old and
    the new run copy. others: foreign files."""

    copied: frozenset[str]
    others: frozenset[str]

    @classmethod
    def of(cls, store: Store, path: str) -> Self:
        """The note at `path`; an empty one if it is gone or cannot be read."""
        try:
            values = parse_json(store.read(path))
            copied, others = (frozenset(map(str, values[name])) for name in ("copied", "others"))
        except (NotFound, ValueError, KeyError, TypeError):
            return cls(frozenset(), frozenset())
        return cls(copied, others)

    def to_bytes(self) -> bytes:
        return json.dumps({"copied": sorted(self.copied), "others": sorted(self.others)}).encode()


class Target:
    """A dataset made or being made. All state is at the URI: any number of these objects may be open on one target."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def open(cls, uri: str, storage: Storage = DEFAULT_STORAGE) -> Target:
        """The target at `uri`. Makes no requests."""
        return cls(open_store(uri, storage))

    def look(self, copied: Iterable[str] = ()) -> Listing:
        """Lists what is there now; the other methods take what they need to know from the listing.

        Raises TargetConflict if the target or a folder above it is a file or a dangling link, or if something other
        than a file has the name of a file that a run writes, or is at one of the paths in `copied`.
        """
        self._refuse_links_to_nothing()
        self._refuse_odd_places(copied)
        listing = Listing.of(self.store)
        if "" in listing:
            raise TargetConflict(
                "this is a file, but the target has to be a folder; choose an empty or new one",
                uri=self.store.uri,
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
                message = f"{path} is a link to {path.readlink()}, which does not exist; create that folder"
                raise TargetConflict(f"{message}, or remove the link", uri=self.store.uri)

    def _refuse_odd_places(self, copied: Iterable[str]) -> None:
        odd = odd_places(self.store)
        root = Path(self.store.uri)
        in_the_way = (obstacle(root, path) for path in copied) if is_local(self.store.uri) else ()
        odd += [(place.relative_to(root).as_posix(), what) for place, what in filter(None, in_the_way)]
        for path, what in odd:
            message = f"this is {what}, at a path that a run writes; remove it, or choose another target"
            raise TargetConflict(message, uri=self.store.url(path))

    def state(self, listing: Listing, sidecars: Files = NO_FILES) -> State:
        """`finished`: there is a manifest of ours; `started`: there is a plan; `left`: neither, but traces of a run
        of ours that has lost both, and nothing else; `foreign`: there are other files. sidecars: the files that a new
        run copies; identical ones do not count as foreign."""
        if MANIFEST_PATH in listing and self._is_manifest_ours():
            return "finished"
        if PLAN_PATH in listing:
            return "started"
        if not listing.foreign:
            return "empty"
        return "left" if self._is_left(listing, sidecars) else "foreign"

    def manifest(self) -> Manifest | None:
        """The manifest of a finished target, validated; None if there is none."""
        try:
            return Manifest.read(self.store)
        except NotFound:
            return None

    def planned(self) -> PlannedRun | None:
        """The plan at the target; None if there is none. Raises CorruptWeights if it cannot be read."""
        try:
            data = self.store.read(PLAN_PATH)
        except NotFound:
            return None
        return PlannedRun.of(read_plan_file(data, self.store.url(PLAN_PATH)))

    def current(self) -> RunIdentity:
        """The identity of the run that the target holds now. Raises IncompleteDataset if there is none."""
        planned = self.planned()
        if planned is None:
            message = "no run was started here; run the quantize command"
            raise IncompleteDataset(message, uri=self.store.uri)
        return planned.identity

    def start(self, plan_table: pa.Table, listing: Listing) -> PlannedRun:
        """Makes this the target's plan unless it has one already; returns the plan that counts.

        The caller compares their fingerprints. Raises TargetConflict if the target holds foreign files, unless
        `clear` has just left them there.
        """
        self.refuse_foreign(listing)
        if PLAN_PATH in listing and (planned := self.planned()) is not None:
            return planned
        table = with_run_id(plan_table, json.dumps(uuid.uuid4().hex).encode())
        if self.store.create(PLAN_PATH, plan_file(table)):
            self.store.delete(listing.notes)  # from here on the plan says which files were copied
            return PlannedRun.of(table)
        planned = self.planned()
        if planned is None:  # another driver's --overwrite removed it just now
            raise being_cleared(self.store.uri)
        return planned

    def refuse_foreign(self, listing: Listing, sidecars: Files = NO_FILES) -> None:
        """Raises TargetConflict, naming a few, if the target holds no run but foreign files or leftovers of a run."""
        state = self.state(listing, sidecars)
        if state == "left":
            message = (
                "the target holds parts or commits of a run without its plan: overwriting that run was interrupted; "
                "quantize with --overwrite to clear them"
            )
            raise TargetConflict(message, uri=self.store.uri)
        if state == "foreign":
            is_export = RECORD_PATH in listing or marked(self.store, listing.foreign) is not None
            what = "an export" if is_export else "other files"
            message = f"the target holds {what} ({listed(listing.foreign)}); choose an empty or new folder"
            raise TargetConflict(message, uri=self.store.uri)

    def refuse_other_sidecars(self, sidecars: Files, listing: Listing) -> None:
        """Raises TargetConflict if another file is in a sidecar's place, since it would have to be replaced."""
        for path in sidecars.keys() & listing.sizes.keys():
            if self.store.read(path) != sidecars[path]:
                raise other_sidecar(self.store.url(path))

    def refuse_missing_parts(self, manifest: Manifest, listing: Listing) -> None:
        """Raises IncompleteDataset if a part that the manifest names is not there with its size."""
        missing = listing.missing(manifest.parts)
        if missing:
            in_dataset = MANIFEST_PATH in listing
            found = counted(len(missing), "part") + (" of the dataset" if in_dataset else "")
            hint = "quantize with --repair" if in_dataset else "run the same command again"
            message = f"{found} {are(len(missing))} missing or cut off ({listed(missing)}); {hint}"
            raise IncompleteDataset(message, uri=self.store.uri)

    def refuse_missing_files(self, manifest: Manifest, listing: Listing) -> None:
        """Raises IncompleteDataset if the index, a report file or a copied file is not there with its size."""
        files = (manifest.index, *manifest.sidecars, *manifest.report)
        if listing.missing(files):
            listing = (
                self.look()
            )  # a listing made while they were created may have passed their names too early
        if missing := listing.missing(files):
            found = f"{counted(len(missing), 'file')} of the dataset {are(len(missing))}"
            message = f"{found} missing or of another size ({listed(missing)})"
            raise IncompleteDataset(f"{message}; quantize with --repair", uri=self.store.uri)

    def is_of(self, run: RunIdentity) -> bool:
        """Whether the plan at the target, read again, is this run's."""
        planned = self.planned()
        return planned is not None and planned.identity == run

    def noted(self, listing: Listing) -> Note:
        """What the notes of interrupted clears record, combined."""
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
        """Whether the manifest says that it is ours. A damaged one beside a plan of ours is not a foreign file."""
        try:
            values = parse_json(self.store.read(MANIFEST_PATH))
        except (ValueError, NotFound):
            return False
        return isinstance(values, dict) and values.get("format") == "arrowquant"


def overwritten(uri: str) -> TargetConflict:
    return TargetConflict("the run was overwritten by another one; its results no longer count", uri=uri)


def being_cleared(uri: str) -> TargetConflict:
    return TargetConflict(
        "another run is clearing the target, or has begun there meanwhile; run one at a time", uri=uri
    )


def other_sidecar(url: str) -> TargetConflict:
    message = "this file differs from the source's; remove it, or choose another target, and run the same command again"
    return TargetConflict(message, uri=url)
