"""`--repair`: finds what is damaged in a finished dataset, and replaces it.

Every object that the manifest names is read and compared with its hash; the manifest itself is compared with the plan
and the commits. A damaged part is deleted, which makes its commit stale (target/commit.py), so its shard is missing,
as after a run that was killed. It is done again by the plan that the dataset was made with, into a part with another
name; all other parts stay as they are. Before anything is published, each row that was done again must have the
checksum that the index or the commits recorded for it or, where both are gone, its part must have the hash that the
manifest lists. If not, the source or the code is not what it was, and the dataset stays as it is. A damaged sidecar
is copied again only if the source's file has the hash in the manifest. Then the manifest and whatever else is damaged
are deleted, and the run publishes as any other does. A dataset of which some shard is recorded nowhere any more is
refused before anything is deleted.

Meanwhile readers find an object or the manifest missing, and say so; they never get a wrong value, because they
compare what they read with the checksums in the manifest's index. A repair that was stopped can be repeated: until
its manifest is deleted it continues as a repair that is partly done, and after that as an unfinished run all of whose
shards are committed, which the ordinary command completes too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from arrowquant_dist.driver.earlier import refuse_difference
from arrowquant_dist.errors import (
    ArrowQuantError,
    CorruptWeights,
    IncompleteDataset,
    InvalidCheckpoint,
    NotFound,
    counted,
    listed,
)
from arrowquant_dist.format.row import RowHeader
from arrowquant_dist.plan import Plan, is_same_work, plan_from_table
from arrowquant_dist.report.render import REPORT_PATH, REPORT_PATHS, read_report
from arrowquant_dist.target.commit import place_of, read_commits
from arrowquant_dist.target.intact import hash_of_object, sound_shards
from arrowquant_dist.target.layout import PLAN_PATH, Listing
from arrowquant_dist.target.manifest import (
    MANIFEST_PATH,
    Manifest,
    ManifestPart,
    ManifestTotals,
    StoredFile,
    hash_of,
)
from arrowquant_dist.target.plan_file import PlannedRun, RunIdentity
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.shards import CommittedShards
from arrowquant_dist.target.target import Files, Target, being_cleared

_LOG = logging.getLogger("arrowquant_dist.repair")
_READERS = 4
_SAID_TWICE = ("fingerprint", "source", "config", "aliases", "compression")  # in both plan and manifest


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What is known about the shards of a dataset.

    rows: {shard: its rows}, from the index and the commits. parts: {shard: its part} from the manifest, for shards
    whose rows are recorded nowhere.
    """

    rows: Mapping[int, Sequence[RowHeader]]
    parts: Mapping[int, ManifestPart]

    def __contains__(self, shard: int) -> bool:
        return shard in self.rows or shard in self.parts

    def has(self, receipt: Receipt) -> bool:
        """Whether the receipt's part holds what was recorded. Equal rows are enough: other releases of the libraries
        write the same rows in other bytes."""
        rows, part = self.rows.get(receipt.shard), self.parts.get(receipt.shard)
        if rows is not None:
            return [*rows] == [row.header for row in receipt.rows]
        return part is not None and _has_bytes_of(part, receipt)


@dataclass(frozen=True, slots=True)
class Repair:
    """A damaged dataset, and what its repair needs.

    plan, run: what the dataset was made with.
    receipts: those of the undamaged shards.
    sidecars: those that the dataset has or gets again.
    damaged: paths under the target.
    recorded: what is known about its shards.
    gives_way: {path: version} of the objects that are deleted before their replacements are written.
    """

    target: Target
    plan: Plan
    run: RunIdentity
    receipts: dict[int, Receipt]
    sidecars: Files
    damaged: tuple[str, ...]
    recorded: _Recorded
    gives_way: Mapping[str, str]

    def make_room(self, receipts: Iterable[Receipt]) -> Listing:
        """Deletes the manifest and the damaged objects; returns a listing of what is left.

        Raises InvalidCheckpoint, deleting nothing but the new part, if a row that was done again differs from the
        recorded one.
        """
        for receipt in receipts:
            if receipt.shard not in self.receipts:
                self._refuse_other_rows(receipt)
        if self.target.store.delete_unchanged(self.gives_way):
            raise being_cleared(self.target.store.uri)
        return self.target.look()

    def _refuse_other_rows(self, receipt: Receipt) -> None:
        if self.recorded.has(receipt):
            return
        self.target.store.delete([receipt.part])
        recorded = self.recorded.rows.get(receipt.shard, ())
        found = [row.header for row in receipt.rows]
        wrong = next((now for now in found if now not in recorded), found[0])
        message = (
            "its rows, quantized again, differ from those recorded for the dataset: the source or the code is not the "
            "one that made it; restore that one, or quantize everything again with --overwrite"
        )
        raise InvalidCheckpoint(message, layer=wrong.layer_name, uri=self.target.store.uri)


def find_damage(target: Target, plan: Plan, sidecars: Files, listing: Listing) -> Repair | None:
    """What has to be repaired; None if there is no finished dataset or everything is as it was written. Deletes the
    damaged parts, and logs each damaged object.

    plan: the plan of this command. Raises TargetConflict, saying what differs, if the dataset belongs to another
    plan; IncompleteDataset if something is damaged and the plan that the dataset was made with is gone.
    """
    if MANIFEST_PATH not in listing:
        return None
    manifest, planned = _manifest(target, listing), _planned(target, listing)
    if manifest is not None and planned is not None and not manifest.is_of(planned.identity):
        return None  # not a dataset: the manifest was left by a driver whose run was overwritten
    if planned is None:
        _refuse_damage_without_plan(target, manifest, listing)
        return None
    if planned.identity.fingerprint != plan.fingerprint:
        made_by = plan_from_table(planned.table)
        if not is_same_work(made_by, plan):
            refuse_difference(target, planned, plan)
        plan = made_by
    run = planned.identity
    committed = CommittedShards(target, run.fingerprint, run.name).receipts(listing, known={})
    recorded = _recorded(target, run, manifest, listing)
    sound = sound_shards(target.store, committed)
    receipts = {
        shard: receipt for shard, receipt in committed.items() if shard in sound and recorded.has(receipt)
    }
    files = _damaged_files(target, manifest, sidecars)
    parts = _damaged_parts(plan, manifest, receipts, committed)
    damaged = [*parts, *files, *([MANIFEST_PATH] if _says_otherwise(manifest, plan, receipts) else [])]
    if not damaged:
        return None
    _refuse_unrecorded(target, plan, receipts, recorded)
    if manifest is not None:
        sidecars = _sidecars_of(target, manifest, files, sidecars)
    for path in damaged:
        _LOG.warning("damaged, making it again: %s", target.store.url(path))
    target.store.delete([receipt.part for shard, receipt in committed.items() if shard not in receipts])
    indexes = (
        [manifest.index.path] if manifest is not None and parts else []
    )  # it names a part that gets replaced
    gives_way = {
        path: listing.versions[path] for path in (MANIFEST_PATH, *files, *indexes) if path in listing
    }
    return Repair(target, plan, run, receipts, sidecars, tuple(damaged), recorded, gives_way)


def _manifest(target: Target, listing: Listing) -> Manifest | None:
    """The manifest; None if it is damaged. Raises InvalidCheckpoint if a newer release wrote it."""
    try:
        return target.manifest()
    except CorruptWeights:
        return None
    except InvalidCheckpoint:
        if target.state(listing) == "finished":  # ours, of a newer release
            raise
        return None


def _says_otherwise(manifest: Manifest | None, plan: Plan, receipts: Mapping[int, Receipt]) -> bool:
    """Whether the plan and the commits contradict the manifest. receipts: those of the undamaged shards; if some
    shard is damaged, the totals are not known here, and the manifest is replaced in any case."""
    if manifest is None or any(getattr(manifest, name) != getattr(plan, name) for name in _SAID_TWICE):
        return True
    return len(receipts) == len(plan.shards) and manifest.totals != ManifestTotals.of(receipts.values())


def _planned(target: Target, listing: Listing) -> PlannedRun | None:
    """The plan of the run; None if it is gone or damaged."""
    if PLAN_PATH not in listing:
        return None
    try:
        return target.planned()
    except CorruptWeights:
        return None


def _refuse_damage_without_plan(target: Target, manifest: Manifest | None, listing: Listing) -> None:
    damaged = [MANIFEST_PATH]
    if manifest is not None:
        damaged = listing.missing(manifest.parts) or _changed(target, manifest.parts)
        damaged += _damaged_files(target, manifest, {})
    if damaged:
        message = (
            f"damaged: {', '.join(damaged[:5])}; the dataset's plan ({PLAN_PATH}) is damaged or gone too, so single "
            "files can't be repaired: quantize everything again with --overwrite"
        )
        raise IncompleteDataset(message, uri=target.store.uri)


def _recorded(target: Target, run: RunIdentity, manifest: Manifest | None, listing: Listing) -> _Recorded:
    """The rows as the index has them; where it is damaged, as recorded by the first readable commit of each shard
    that describes the part named in the manifest."""
    parts = {part.shard: part for part in manifest.parts} if manifest is not None else {}
    rows: dict[int, list[RowHeader]] = {}
    commits = sorted(listing.commits, key=place_of)
    for commit in read_commits(target.store, commits, run.fingerprint, run.name):
        receipt = commit.receipt
        if receipt is None or receipt.shard in rows:
            continue
        part = parts.get(receipt.shard)
        if manifest is None or (part is not None and _has_bytes_of(part, receipt)):
            rows[receipt.shard] = [row.header for row in receipt.rows]
    if manifest is None:
        return _Recorded(rows, {})
    try:
        entries = manifest.read_index(target.store)
    except (ArrowQuantError, NotFound):
        return _Recorded(rows, parts)
    indexed: dict[int, list[RowHeader]] = {}
    for entry in entries:
        indexed.setdefault(entry.shard, []).append(entry.record.header)
    return _Recorded(rows | indexed, parts)


def _refuse_unrecorded(
    target: Target, plan: Plan, receipts: Mapping[int, Receipt], recorded: _Recorded
) -> None:
    unknown = [
        shard.index for shard in plan.shards if shard.index not in receipts and shard.index not in recorded
    ]
    if unknown:
        message = (
            f"{len(unknown)} of the dataset's shards ({listed(unknown)}) can't be repaired, since manifest and commit, "
            "which recorded the content, are damaged or gone; quantize everything again with --overwrite"
        )
        raise IncompleteDataset(message, uri=target.store.uri)


def _sidecars_of(target: Target, manifest: Manifest, damaged: Sequence[str], sidecars: Files) -> Files:
    """The sidecars that the manifest lists: read from the target where undamaged, else taken from the source.
    sidecars: those of the source. If target and source agree with each other, it is the manifest that is damaged.

    Raises InvalidCheckpoint if a damaged file is not the same in the source.
    """
    files = {}
    for said in manifest.sidecars:
        data = sidecars.get(said.path) if said.path in damaged else target.store.read(said.path)
        if data is None or (StoredFile.of(said.path, data) != said and data != _content(target, said.path)):
            now = f"{counted(len(data), 'byte')}, {hash_of(data)}" if data is not None else "missing"
            message = (
                f"it is damaged, and the source's file is not the one that was copied (was "
                f"{counted(said.nbytes, 'byte')}, {said.hash}; is {now}); restore the source's file, or the code that "
                "copied it, or quantize with --overwrite"
            )
            raise InvalidCheckpoint(message, uri=target.store.url(said.path))
        files[said.path] = data
    return files


def _damaged_parts(
    plan: Plan, manifest: Manifest | None, receipts: Mapping[int, Receipt], committed: Mapping[int, Receipt]
) -> list[str]:
    """Paths of the parts that must be done again, and of those that manifest and commits describe differently."""
    said = {part.shard: part for part in manifest.parts} if manifest is not None else {}
    damaged = []
    for shard in plan.shards:
        receipt, part = receipts.get(shard.index), said.get(shard.index)
        if receipt is None:
            known = part or committed.get(shard.index)
            path = getattr(known, "path", None) or getattr(known, "part", f"shard {shard.index}")
            damaged.append(str(path))
        elif manifest is not None and part != _part_of(receipt):
            damaged.append(part.path if part is not None else receipt.part)
    return damaged


def _part_of(receipt: Receipt) -> ManifestPart:
    return ManifestPart(receipt.part, receipt.shard, len(receipt.rows), receipt.nbytes, receipt.hash)


def _has_bytes_of(part: ManifestPart, receipt: Receipt) -> bool:
    """Whether the part has the rows, size and hash of the receipt's, whatever its name."""
    return (part.rows, part.nbytes, part.hash) == (len(receipt.rows), receipt.nbytes, receipt.hash)


def _damaged_files(target: Target, manifest: Manifest | None, sidecars: Files) -> list[str]:
    """Paths of the index, sidecars and report files that differ from what the manifest lists or, without a manifest,
    from the source's."""
    if manifest is None:
        return [path for path, data in sidecars.items() if _content(target, path) not in (data, None)]
    damaged = _changed(target, [manifest.index, *manifest.sidecars, *manifest.report])
    if not manifest.report:  # as the first releases wrote it: look for reports that are gone or unreadable
        damaged += [path for path in REPORT_PATHS if not target.store.exists(path)]
        with suppress(NotFound):
            damaged += [] if _is_readable(target, manifest) else [REPORT_PATH]
    return damaged


def _is_readable(target: Target, manifest: Manifest) -> bool:
    try:
        read_report(target.store, manifest)
    except InvalidCheckpoint:
        return False
    return True


def _changed(target: Target, files: Sequence[StoredFile | ManifestPart]) -> list[str]:
    """Paths of the files that are gone or have another size or hash."""

    def is_changed(file: StoredFile | ManifestPart) -> bool:
        try:
            if target.store.size(file.path) != file.nbytes:
                return True
            return hash_of_object(target.store, file.path, file.nbytes) != file.hash
        except NotFound:
            return True

    with ThreadPoolExecutor(_READERS, thread_name_prefix="repair") as readers:
        return [
            file.path for file, changed in zip(files, readers.map(is_changed, files), strict=True) if changed
        ]


def _content(target: Target, path: str) -> bytes | None:
    try:
        return target.store.read(path)
    except NotFound:
        return None
