"""The target URI as a place: what is ours there, and in which order it is written.

All of it is made so that any number of drivers and workers may be at it, and any of them may stop at any request:

- parts have names of their own, and what decides (plan, commits, index, sidecars, manifest) is created, never replaced;
- each plan has an id of its run: a driver whose run was overwritten meanwhile takes its manifest back;
- only `clear` and the removal of what no manifest names delete anything.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import (
    CorruptWeights,
    IncompleteDataset,
    InvalidCheckpoint,
    NotFound,
    StorageError,
    TargetConflict,
)
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.commit import (
    counting_receipts,
    place_of,
    read_commits,
    read_counting,
    write_commit,
)
from arrowquant_dist.target.index import INDEX_PATH, read_index
from arrowquant_dist.target.layout import PLAN_PATH, WEIGHTS_FOLDER, Listing
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest, StoredFile
from arrowquant_dist.target.plan_file import fingerprint_of, plan_file, read_plan_file, run_of, sidecars_of
from arrowquant_dist.target.receipt import Receipt

State = Literal["empty", "started", "finished", "foreign"]
Files = Mapping[str, bytes]  # {path under the target: content}

_NAMED = 3  # files that an error lists


class Target:
    """A dataset being made, or made. All state is at the URI: any number of these may be open on one.

    fingerprint: of the plan there, once `start` or `planned` has seen it, or as given.
    """

    def __init__(self, store: Store, fingerprint: str | None = None) -> None:
        self.store = store
        self._fingerprint = fingerprint
        self._run: bytes | None = None
        self._is_cleared = False

    @classmethod
    def open(cls, uri: str, storage: Storage = DEFAULT_STORAGE, fingerprint: str | None = None) -> Target:
        """The target at `uri`. No requests. fingerprint: of its plan, where it is known (in workers)."""
        return cls(open_store(uri, storage), fingerprint)

    @property
    def fingerprint(self) -> str:
        """Of the plan at the target. IncompleteDataset where there is none."""
        if self._fingerprint is None and self.planned() is None:
            message = "no run was started here; run the quantize command"
            raise IncompleteDataset(message, uri=self.store.uri)
        return self._fingerprint or ""

    def look(self) -> Listing:
        """What is there now: one listing, which the methods below take so that they need none of their own.

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

    def state(self, listing: Listing | None = None) -> State:
        """`finished`: a manifest of ours; `started`: a plan; `foreign`: none of these, but other files."""
        listing = listing or self.look()
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

    def planned(self) -> pa.Table | None:
        """The plan at the target, or None. CorruptWeights where it cannot be read."""
        try:
            table = read_plan_file(self.store.read(PLAN_PATH), self.store.url(PLAN_PATH))
        except NotFound:
            return None
        self._fingerprint, self._run = fingerprint_of(table), run_of(table)
        return table

    def start(self, plan_table: pa.Table, listing: Listing | None = None) -> pa.Table:
        """Makes this the target's plan unless it has one; returns the plan that counts.

        The caller compares their fingerprints. TargetConflict where the target holds files of others, unless
        `clear` has just left them there.
        """
        listing = listing or self.look()
        if not self._is_cleared:
            self.refuse_foreign(listing)
            if PLAN_PATH in listing and (planned := self.planned()) is not None:
                return planned
        run = json.dumps(uuid.uuid4().hex).encode()
        if self.store.create(PLAN_PATH, plan_file(plan_table, run)):
            self._fingerprint, self._run = fingerprint_of(plan_table), run
            return plan_table
        planned = self.planned()
        if planned is None:  # another driver's --overwrite removed it just now
            raise TargetConflict("another run is clearing the target; run one at a time", uri=self.store.uri)
        return planned

    def refuse_foreign(self, listing: Listing | None = None) -> None:
        """TargetConflict, naming a few, where the target holds files of others and no run."""
        listing = listing or self.look()
        if self.state(listing) == "foreign":
            foreign = listing.foreign
            shown = ", ".join(foreign[:_NAMED]) + (" …" if len(foreign) > _NAMED else "")
            message = f"the target holds other files ({shown}); choose an empty or new folder"
            raise TargetConflict(message, uri=self.store.uri)

    def refuse_other_sidecars(self, sidecars: Files, listing: Listing) -> None:
        """TargetConflict where a file lies in a sidecar's place that is not it: it would have to be replaced."""
        for path in sidecars.keys() & listing.sizes.keys():
            if self.store.read(path) != sidecars[path]:
                raise _other_sidecar(self.store.url(path))

    def clear(self, listing: Listing | None = None) -> Listing:
        """Deletes what is ours, for `--overwrite`; returns the files of others, which stay.

        TargetConflict if it never was ours.

        The manifest goes first: from then on this is no dataset. The plan goes last: until then a clear that
        was interrupted can be told from files of somebody else, and repeated. After the plan the manifest once
        more: one that another driver created meanwhile names parts that are gone; from now on it sees so itself.
        """
        listing = listing or self.look()
        state = self.state(listing)
        if state == "empty":
            return listing
        if state == "foreign":
            message = "the target holds files of others and no run; nothing was deleted, choose another one"
            raise TargetConflict(message, uri=self.store.uri)
        sidecars = self._sidecars()
        decided = {PLAN_PATH, MANIFEST_PATH, INDEX_PATH, *listing.commits}
        self.store.delete([MANIFEST_PATH])
        self.store.delete([INDEX_PATH, *sidecars])
        self.store.delete(listing.commits)
        self.store.delete([path for path in listing.ours if path not in decided])
        self.store.delete([PLAN_PATH])
        self.store.delete([MANIFEST_PATH])
        self._fingerprint, self._run, self._is_cleared = None, None, True
        deleted = {*listing.ours, *sidecars}
        return Listing({path: nbytes for path, nbytes in listing.sizes.items() if path not in deleted})

    def receipts(
        self, listing: Listing | None = None, known: Mapping[int, Receipt] | None = None
    ) -> dict[int, Receipt]:
        """The committed shards of this target's plan, by shard.

        A commit that cannot be read, is of another plan, or whose part is not there in its size, is none: the
        shard is done again, and that attempt's commit counts. known: what an earlier call returned; a commit never
        changes, so those are not read again.
        """
        fingerprint, listing = self.fingerprint, listing or self.look()

        def has_part(receipt: Receipt) -> bool:
            return listing.holds(receipt.part, receipt.nbytes)

        counting = {shard: receipt for shard, receipt in (known or {}).items() if has_part(receipt)}
        unread = [path for path in listing.commits if place_of(path)[0] not in counting]
        counting |= counting_receipts(read_commits(self.store, unread, fingerprint), has_part)
        return dict(sorted(counting.items()))

    def receipt(self, shard: int) -> Receipt | None:
        """Of one shard: what `receipts` has for it, in two requests."""
        return read_counting(self.store, shard, self.fingerprint)

    def commit(self, receipt: Receipt) -> bool:
        """Publishes a finished shard, the first attempt wins. False: another has; this one's part is deleted.

        The receipt that counts then is `receipt(shard)`. StorageError: the outcome is unknown, and nothing is
        deleted. TargetConflict: the run was overwritten by another, and the part is deleted.
        """
        try:
            if write_commit(self.store, receipt, self.fingerprint, self._is_of_current_plan):
                return True
        except TargetConflict:
            self.store.delete([receipt.part])
            raise
        self.store.delete([receipt.part])
        return False

    def publish(
        self,
        manifest: Manifest,
        index: bytes,
        files: Files,
        *,
        report: Callable[[], Files] = dict,
        listing: Listing | None = None,
    ) -> Manifest:
        """Makes the dataset: index and sidecars, the report, then the manifest; then removes what lost.

        manifest: of the receipts in `receipts()`, so that every driver of a plan publishes the same rows.
        files: the sidecars that the manifest lists, which are never replaced, and others, which are.
        report: files too, asked for when all of those are written. listing: taken after the last commit.
        Returns the manifest that counts, which is another driver's if that was first. IncompleteDataset where a
        part is not there, TargetConflict where the run was overwritten meanwhile, or the dataset there is of
        another plan.
        """
        listing = listing or self.look()
        counting = self.manifest()
        if counting is None:
            counting = self._publish(manifest, index, files, report, listing)
        if counting.fingerprint != manifest.fingerprint:
            message = "another plan's dataset was published here meanwhile; choose another target"
            raise TargetConflict(message, uri=self.store.uri)
        self.sweep(counting, listing)
        return counting

    def sweep(self, manifest: Manifest | None = None, listing: Listing | None = None) -> list[str]:
        """Removes parts that the manifest does not name, and temporary files; returns their paths.

        Uploads of parts that were begun and not ended are given up too: whoever is at them has lost.
        Nothing without a manifest: attempts may be at work then. IncompleteDataset where a part that it names is
        not there: others may be what is left of the dataset.
        """
        manifest = manifest or self.manifest()
        if manifest is None:
            return []
        listing = listing or self.look()
        if listing.missing(manifest.parts):
            listing = self.look()  # the manifest may be younger than the listing
            self._refuse_missing_parts(manifest, listing)
        losers = listing.leftovers([part.path for part in manifest.parts])
        self.store.delete(losers)
        self.store.abandon_uploads(WEIGHTS_FOLDER)
        return losers

    def _publish(
        self, manifest: Manifest, index: bytes, files: Files, report: Callable[[], Files], listing: Listing
    ) -> Manifest:
        self._refuse_missing_parts(manifest, listing)
        self._refuse_overwritten()
        index, replaced = self._place_index(index)
        manifest = replace(manifest, index=StoredFile.of(INDEX_PATH, index))
        sidecars = {sidecar.path for sidecar in manifest.sidecars}
        for path, data in files.items():
            if path in sidecars:
                self._place_sidecar(path, data)
            else:
                self.store.write(path, data)
        for path, data in report().items():
            self.store.write(path, data)
        if not self._create_manifest(manifest):
            counting = Manifest.read(self.store)
            if replaced is not None and StoredFile.of(INDEX_PATH, replaced) == counting.index:
                self.store.write(INDEX_PATH, replaced)
            return counting
        if not self._is_current():
            # The run was overwritten while this was at it: parts may be gone, so this is no dataset.
            self.store.delete([MANIFEST_PATH])
            self._refuse_overwritten()
        return manifest

    def _place_index(self, index: bytes) -> tuple[bytes, bytes | None]:
        """The bytes of index.parquet from now on, and those that had to give way to them, if any.

        Another driver, of another version perhaps, may be about to publish the index that it left there: where that
        has the same rows it stays, and is ours too. One with other rows is a leftover (a part was lost since).
        """
        found = self._create(INDEX_PATH, index)
        if found == index or _has_the_rows_of(found, index):
            return found, None
        self.store.write(INDEX_PATH, index)
        return index, found

    def _place_sidecar(self, path: str, data: bytes) -> None:
        if self._create(path, data) != data:
            raise _other_sidecar(self.store.url(path))

    def _create(self, path: str, data: bytes) -> bytes:
        """What is at `path` from now on: `data`, or what was there already."""
        try:
            if self.store.create(path, data):
                return data
        except StorageError:
            # The write may have landed and its answer got lost; then something is there.
            if not self.store.exists(path):
                raise
        try:
            return self.store.read(path)
        except NotFound as error:
            message = "another run is clearing the target; run one at a time"
            raise TargetConflict(message, uri=self.store.uri) from error

    def _create_manifest(self, manifest: Manifest) -> bool:
        data = manifest.to_bytes()
        try:
            return self.store.create(MANIFEST_PATH, data)
        except StorageError:
            # The write may have landed and its answer got lost. If so there is a manifest, whoever's it is.
            found = self.manifest()
            if found is None:
                raise
            return found == manifest

    def _is_current(self) -> bool:
        """Whether the plan at the target, read anew, is still the one of this run."""
        there = Target(self.store)
        return there.planned() is not None and (there._fingerprint, there._run) == (
            self.fingerprint,
            self._run,
        )

    def _is_of_current_plan(self) -> bool:
        """Whether the plan at the target, read anew, is an equal one."""
        return Target(self.store).fingerprint == self.fingerprint

    def _refuse_overwritten(self) -> None:
        if not self._is_current():
            message = "the run was overwritten by another one; nothing of this one counts"
            raise TargetConflict(message, uri=self.store.uri)

    def _refuse_missing_parts(self, manifest: Manifest, listing: Listing) -> None:
        missing = listing.missing(manifest.parts)
        if missing:
            shown = ", ".join(missing[:_NAMED])
            message = f"{len(missing)} parts are missing or cut ({shown}); run the same command again"
            if MANIFEST_PATH in listing:
                message = f"{len(missing)} parts of the dataset are missing or cut ({shown}); quantize with --overwrite"
            raise IncompleteDataset(message, uri=self.store.uri)

    def _is_manifest_ours(self) -> bool:
        """Whether it says so; a damaged one beside a plan of ours is still no file of somebody else."""
        try:
            values = json.loads(self.store.read(MANIFEST_PATH))
        except (ValueError, NotFound):
            return False
        return isinstance(values, dict) and values.get("format") == "arrowquant"

    def _sidecars(self) -> set[str]:
        """Copied files: those that the manifest lists, and those of the plan; none where they cannot be read.

        A run that was killed while it published left the plan's without a manifest. They are ours: a file of
        others in their place was refused.
        """
        try:
            manifest = self.manifest()
            if manifest is not None:
                return {sidecar.path for sidecar in manifest.sidecars}
            planned = self.planned()
            return sidecars_of(planned) if planned is not None else set()
        except (CorruptWeights, InvalidCheckpoint):
            return set()


def _has_the_rows_of(found: bytes, index: bytes) -> bool:
    try:
        return read_index(found) == read_index(index)
    except CorruptWeights:
        return False


def _other_sidecar(url: str) -> TargetConflict:
    message = (
        "this file is not the source's; remove it, or choose another target, and run the same command again"
    )
    return TargetConflict(message, uri=url)
