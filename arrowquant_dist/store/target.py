"""The target URI as a place: where everything lies, what is ours, and in which order it is written."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
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
from arrowquant_dist.store.commit import (
    commit_path,
    commits_by_shard,
    is_commit,
    read_commit,
    read_commits,
    write_commit,
)
from arrowquant_dist.store.files import Store
from arrowquant_dist.store.index import INDEX_PATH
from arrowquant_dist.store.local import TEMPORARY_MARK
from arrowquant_dist.store.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.store.receipt import Receipt

PLAN_PATH = "run/plan.arrow"
WEIGHTS_FOLDER = "weights"
REPORT_FOLDER = "report"
FINGERPRINT_KEY = b"arrowquant.fingerprint"

State = Literal["empty", "started", "finished", "foreign"]

_REPORT = re.compile(rf"{REPORT_FOLDER}/(report\.(json|md|html)|layers\.parquet)")
_PART = re.compile(rf"{WEIGHTS_FOLDER}/shard=\d{{5,}}/part-[^/]+\.parquet")
_NAMED = 3  # foreign files that an error lists


class Target:
    """A dataset being made, or made. All state is at the URI: any number of these may be open on one.

    fingerprint: of the plan there, once `start` or `planned` has seen it, or as given.
    """

    def __init__(self, store: Store, fingerprint: str | None = None) -> None:
        self.store = store
        self._fingerprint = fingerprint
        self._is_cleared = False

    @classmethod
    def open(cls, uri: str, storage: Storage = DEFAULT_STORAGE, fingerprint: str | None = None) -> Target:
        """The target at `uri`. No requests. fingerprint: of its plan, where it is known (in workers)."""
        return cls(Store.open(uri, storage), fingerprint)

    @property
    def fingerprint(self) -> str:
        """Of the plan at the target. IncompleteDataset where there is none."""
        if self._fingerprint is None and self.planned() is None:
            message = "no run was started here; run the quantize command"
            raise IncompleteDataset(message, uri=self.store.uri)
        return self._fingerprint or ""

    def state(self) -> State:
        """`finished`: a manifest of ours; `started`: a plan; `foreign`: none of these, but other files."""
        paths = {info.path for info in self.store.list()}
        if MANIFEST_PATH in paths and self._is_manifest_ours():
            return "finished"
        if PLAN_PATH in paths:
            return "started"
        return "foreign" if self._foreign(paths) else "empty"

    def manifest(self) -> Manifest | None:
        """The manifest of a finished target, validated; else None."""
        try:
            return Manifest.read(self.store)
        except NotFound:
            return None

    def planned(self) -> pa.Table | None:
        """The plan at the target, or None. CorruptWeights where it cannot be read."""
        uri = self.store.url(PLAN_PATH)
        try:
            table = pa.ipc.open_file(io.BytesIO(self.store.read(PLAN_PATH))).read_all()
            self._fingerprint = _fingerprint_of(table)
        except NotFound:
            return None
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            message = f"the plan of the run is damaged ({error}); start anew with --overwrite"
            raise CorruptWeights(message, uri=uri) from error
        return table

    def start(self, plan_table: pa.Table) -> pa.Table:
        """Makes this the target's plan unless it has one; returns the plan that counts.

        The caller compares their fingerprints. TargetConflict where the target holds files of others, unless
        `clear` has just left them there.
        """
        if not self._is_cleared:
            self.refuse_foreign()
        out = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(out, plan_table.schema, options=options) as writer:
            writer.write_table(plan_table)
        if self.store.create(PLAN_PATH, out.getvalue()):
            self._fingerprint = _fingerprint_of(plan_table)
            return plan_table
        planned = self.planned()
        if planned is None:  # another driver's --overwrite removed it just now
            raise TargetConflict("another run is clearing the target; run one at a time", uri=self.store.uri)
        return planned

    def refuse_foreign(self) -> None:
        """TargetConflict, naming a few, where the target holds files of others and no run."""
        if self.state() == "foreign":
            foreign = self._foreign({info.path for info in self.store.list()})
            shown = ", ".join(foreign[:_NAMED]) + (" …" if len(foreign) > _NAMED else "")
            found = f"holds other files ({shown})" if foreign != [""] else "is a file"
            message = f"the target {found}; choose an empty or new folder"
            raise TargetConflict(message, uri=self.store.uri)

    def clear(self) -> None:
        """Deletes what is ours, for `--overwrite`; files of others stay. TargetConflict if it never was ours.

        The manifest goes first: from then on this is no dataset. The plan goes last: until then a clear that
        was interrupted can be told from files of somebody else, and repeated.
        """
        state = self.state()
        if state == "empty":
            return
        if state == "foreign":
            message = "the target holds files of others and no run; nothing was deleted, choose another one"
            raise TargetConflict(message, uri=self.store.uri)
        sidecars = self._sidecars()
        paths = [info.path for info in self.store.list()]
        self.store.delete([MANIFEST_PATH])
        self.store.delete([INDEX_PATH, *sidecars])
        self.store.delete([path for path in paths if is_commit(path)])
        self.store.delete([path for path in paths if _is_ours(path) and path != PLAN_PATH])
        self.store.delete([PLAN_PATH])
        self._fingerprint, self._is_cleared = None, True

    def part_path(self, shard: int, attempt: str) -> str:
        return f"{WEIGHTS_FOLDER}/shard={shard:05d}/part-{attempt}.parquet"

    def receipts(self) -> dict[int, Receipt]:
        """The committed shards of this target's plan.

        A commit that cannot be read, is of another plan, or whose part is not there in its size, is none: it
        is deleted, and the shard is done again. That is safe, since `publish` looks at every part once more.
        """
        commits = read_commits(self.store, self.fingerprint)
        # Listed after: a commit that another driver's worker lands meanwhile is either unseen or has its part here.
        sizes = {info.path: info.nbytes for info in self.store.list(WEIGHTS_FOLDER)}
        whole = [
            c for c in commits if c.receipt is not None and sizes.get(c.receipt.part) == c.receipt.nbytes
        ]
        self.store.delete([commit.path for commit in commits if commit not in whole])
        return commits_by_shard(whole)

    def receipt(self, shard: int) -> Receipt | None:
        """Of one shard: what `receipts` has for it, in two requests. A stale commit is left alone."""
        found = read_commit(self.store, commit_path(shard), self.fingerprint).receipt
        try:
            whole = found is not None and self.store.size(found.part) == found.nbytes
        except NotFound:
            return None
        return found if whole else None

    def commit(self, receipt: Receipt) -> bool:
        """Publishes a finished shard, the first attempt wins. False: another has; this one's part is deleted.

        The receipt that counts then is in `receipts()`. StorageError: the outcome is unknown, and nothing is
        deleted. TargetConflict: the run was overwritten by another plan's.
        """
        if write_commit(self.store, receipt, self.fingerprint, self._is_current):
            return True
        self.store.delete([receipt.part])
        return False

    def publish(self, manifest: Manifest, index: bytes, files: Mapping[str, bytes]) -> Manifest:
        """Makes the dataset: index, report files and sidecars, then the manifest; then removes what lost.

        manifest: of the receipts in `receipts()`, so that every driver of a plan publishes the same index.
        files: {path: content} of report/ and the sidecars. Returns the manifest that counts, which is another
        driver's if that was first. IncompleteDataset where a part is not there, TargetConflict where the
        dataset there is of another plan.
        """
        existing = self.manifest()
        if existing is None:
            self._check_parts(manifest)
            self.store.write(INDEX_PATH, index)
            for path, data in files.items():
                self.store.write(path, data)
            existing = manifest if self._create_manifest(manifest) else Manifest.read(self.store)
        if existing.fingerprint != manifest.fingerprint:
            message = "another plan's dataset was published here meanwhile; choose another target"
            raise TargetConflict(message, uri=self.store.uri)
        self.sweep()
        return existing

    def sweep(self) -> list[str]:
        """Removes parts that the manifest does not name, and temporary files; returns their paths.

        Without a manifest it goes by the commits, which takes parts from attempts that are still being
        written: only when no other run is at work.
        """
        manifest = self.manifest()
        if manifest is not None:
            kept = {part.path for part in manifest.parts}
        else:
            kept = {receipt.part for receipt in self.receipts().values()}
        losers = [
            info.path
            for info in self.store.list()
            if _is_temporary(info.path) or (_PART.fullmatch(info.path) and info.path not in kept)
        ]
        self.store.delete(losers)
        return losers

    def _create_manifest(self, manifest: Manifest) -> bool:
        data = manifest.to_bytes()
        try:
            return self.store.create(MANIFEST_PATH, data)
        except StorageError:
            # The write may have landed and its answer got lost. If so there is a manifest, whoever's it is.
            if self.manifest() is None:
                raise
            return False

    def _is_current(self) -> bool:
        """Whether the plan at the target, read anew, is still the one this is about."""
        return Target(self.store).fingerprint == self.fingerprint

    def _check_parts(self, manifest: Manifest) -> None:
        sizes = {info.path: info.nbytes for info in self.store.list(WEIGHTS_FOLDER)}
        missing = [part.path for part in manifest.parts if sizes.get(part.path) != part.nbytes]
        if missing:
            shown = ", ".join(missing[:_NAMED])
            message = f"{len(missing)} parts are missing or cut ({shown}); run the same command again"
            raise IncompleteDataset(message, uri=self.store.uri)

    def _is_manifest_ours(self) -> bool:
        """Whether it says so; a damaged one beside a plan of ours is still no file of somebody else."""
        try:
            values = json.loads(self.store.read(MANIFEST_PATH))
        except (ValueError, NotFound):
            return False
        return isinstance(values, dict) and values.get("format") == "arrowquant"

    def _sidecars(self) -> list[str]:
        """Copied files that the manifest lists; none where it cannot be read."""
        try:
            manifest = self.manifest()
        except (CorruptWeights, InvalidCheckpoint):
            return []
        return [sidecar.path for sidecar in manifest.sidecars] if manifest is not None else []

    @staticmethod
    def _foreign(paths: set[str]) -> list[str]:
        return sorted(path for path in paths if not _is_temporary(path))


def _is_ours(path: str) -> bool:
    """Whether only this package makes such a path in a target that has a plan or manifest of ours."""
    return (
        path in (PLAN_PATH, MANIFEST_PATH, INDEX_PATH)
        or _REPORT.fullmatch(path) is not None
        or is_commit(path)
        or _PART.fullmatch(path) is not None
        or _is_temporary(path)
    )


def _is_temporary(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(".") and TEMPORARY_MARK in name


def _fingerprint_of(table: pa.Table) -> str:
    """From the schema's metadata, where it is text or JSON of it. KeyError."""
    raw = (table.schema.metadata or {})[FINGERPRINT_KEY].decode()
    return str(json.loads(raw)) if raw.startswith('"') else raw
