"""run/commits/: one small object per finished shard; the first one wins. A shard that is not committed does not exist.

A commit holds the whole receipt, the fingerprint of the plan and the id of the run that it belongs to. So a zombie of
a run that was overwritten meanwhile cannot slip its part into the new run, even if their plans are equal. Its part
would be the right one, byte for byte; but drivers of the zombie's own run, which may still be at work, would take
that part for a losing attempt and delete it. (Commits of older releases have no run id; for them the fingerprint
decides.)

A commit is stale if it cannot be read, belongs to another run, or its part is gone. Nothing here deletes or replaces
a stale commit: between the check and the deletion, somebody else may have replaced it by a valid one. Instead, the
next attempt takes the next place (00000.json, then 00000.1.json …), and the first place that is not stale counts. A
stale commit stays stale, and each place is taken only once, so everybody who looks after that sees the same receipt.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from functools import partial
from itertools import chain, starmap
from types import NoneType
from typing import Any

import pyarrow as pa

from arrowquant_dist.errors import NotFound, StorageError, TargetConflict
from arrowquant_dist.field_types import check_types
from arrowquant_dist.format.record import StoredRange, columns_of, records_of
from arrowquant_dist.format.row import BLOB_NAMES
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.storage.base import Store
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.index import INDEX_SCHEMA
from arrowquant_dist.target.manifest import hash_of
from arrowquant_dist.target.receipt import Receipt

COMMITS_FOLDER = "run/commits"
READERS = 32  # commits read concurrently; each is one small request
_NAME = re.compile(rf"{COMMITS_FOLDER}/(\d{{5,}})(?:\.(\d{{1,2}}))?\.json")
_COMMIT_VERSION = 4
_READ_VERSIONS = (3, _COMMIT_VERSION)  # 3 has fewer fields; read so that its datasets can be repaired
_BODY = b',"receipt":'
_READS = 3  # of a commit that cannot be parsed
_BATCH = 1024  # maximum number of commits held unparsed
_FINITE_FIELDS = 5  # of ErrorSums, without the counts of non-finite values
_NESTED = frozenset(("shape", "layer_shape", *BLOB_NAMES))
# Types of the rows' values; int where a name is not listed.
_TEXTS = {field.name: field.nullable for field in INDEX_SCHEMA if field.type == pa.string()}
_TYPES_OF_ROWS: dict[str, set[type]] = {
    **{name: {str, NoneType} if may_lack else {str} for name, may_lack in _TEXTS.items()},
    "errors": {list, NoneType},
}
_INT32 = frozenset(field.name for field in INDEX_SCHEMA if field.type == pa.int32())
_LARGEST_INT32, _LARGEST_INT64 = 2**31 - 1, 2**63 - 1
_PLACES = 32  # per shard; each but the first is taken only after a stale commit


@dataclass(frozen=True, slots=True)
class Commit:
    """The object at a commit's path. receipt: None if it cannot be read or belongs to another run."""

    path: str
    receipt: Receipt | None


def commit_path(shard: int, place: int = 0) -> str:
    return f"{COMMITS_FOLDER}/{shard:05d}{f'.{place}' if place else ''}.json"


def is_commit(path: str) -> bool:
    return _NAME.fullmatch(path) is not None


def place_of(path: str) -> tuple[int, int]:
    """The shard and the place in a commit's path."""
    numbers = path.removeprefix(f"{COMMITS_FOLDER}/").removesuffix(".json").split(".")
    return int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0


def write_commit(
    store: Store, receipt: Receipt, fingerprint: str, is_current: Callable[[], bool], run: str | None = None
) -> bool:
    """Commits the shard unless it is committed already. True: this receipt counts; False: another attempt's does.

    run: the id of the run, here and below; None: runs with equal plans are not told apart. is_current: whether the
    target's plan is still ours; asked before a place after a stale commit is taken, and if not, TargetConflict is
    raised. Raises StorageError if the outcome stays unknown; the part must not be deleted then.
    """
    data = _commit_bytes(receipt, fingerprint, run)
    for place in range(_PLACES):
        path = commit_path(receipt.shard, place)
        try:
            if store.create(path, data):
                return True
        except StorageError:
            # The write may have landed although its response was lost: then our attempt's id is there.
            landed = read_commit(store, path, fingerprint, run)
            if landed is None or landed.receipt is None:
                raise
        found = read_commit(store, path, fingerprint, run)
        winner = found.receipt if found is not None else None
        if winner is not None and winner.attempt == receipt.attempt:
            return True
        if winner is not None and has_part(store, winner):
            return False
        if not is_current():
            message = "the run was overwritten by another one; its results no longer count"
            raise TargetConflict(message, uri=store.uri)
    message = f"{_PLACES} commits of the shard are stale; start over with --overwrite"
    raise StorageError(message, uri=store.url(commit_path(receipt.shard)))


def read_counting(store: Store, shard: int, fingerprint: str, run: str | None = None) -> Receipt | None:
    """The receipt that counts for one shard, if any, in two requests, and two more for each stale commit."""
    for place in range(_PLACES):
        found = read_commit(store, commit_path(shard, place), fingerprint, run)
        if found is None:
            return None
        if found.receipt is not None and has_part(store, found.receipt):
            return found.receipt
    return None


def has_part(store: Store, receipt: Receipt) -> bool:
    """Whether the receipt's part is there, with the right size. Raises StorageError."""
    try:
        return store.size(receipt.part) == receipt.nbytes
    except NotFound:
        return False


def read_commit(store: Store, path: str, fingerprint: str, run: str | None = None) -> Commit | None:
    """One commit; None if nothing is there. Raises StorageError."""
    data = _read(store, path)
    return _commit(store, path, data, fingerprint, run) if data is not None else None


def read_commits(
    store: Store, paths: Sequence[str], fingerprint: str, run: str | None = None
) -> Iterator[Commit]:
    """Those of the commits at `paths` that exist, read READERS at a time.

    They are parsed in this thread: parsing them in the reading threads took 1.3 times the CPU, since these got in
    each other's way.
    """
    with ThreadPoolExecutor(READERS) as readers:
        for first in range(0, len(paths), _BATCH):
            batch = paths[first : first + _BATCH]
            for path, data in zip(batch, readers.map(partial(_read, store), batch), strict=True):
                if data is not None:
                    yield _commit(store, path, data, fingerprint, run)


def _read(store: Store, path: str) -> bytes | None:
    try:
        return store.read(path)
    except NotFound:
        return None


def _commit(store: Store, path: str, data: bytes | None, fingerprint: str, run: str | None) -> Commit:
    """Parses a commit. One that cannot be parsed is read again: a byte flipped in transit must not make it stale for
    one reader."""
    for _ in range(_READS):
        try:
            receipt = _receipt_in(data or b"", fingerprint, run)
        except (ValueError, TypeError, KeyError, AttributeError):
            data = _read(store, path)
            continue
        return Commit(path, receipt if receipt is not None and place_of(path)[0] == receipt.shard else None)
    return Commit(path, None)


def counting_receipts(commits: Iterable[Commit], has_part: Callable[[Receipt], bool]) -> dict[int, Receipt]:
    """{shard: receipt} of each shard's first commit that is not stale, in the order of the shards."""
    counting: dict[int, Receipt] = {}
    for commit in sorted(commits, key=lambda commit: place_of(commit.path)):
        receipt = commit.receipt
        if receipt is not None and receipt.shard not in counting and has_part(receipt):
            counting[receipt.shard] = receipt
    return counting


def _commit_bytes(receipt: Receipt, fingerprint: str, run: str | None) -> bytes:
    """The commit as one JSON object; `receipt` comes last, and `checksum` is the hash of its text."""
    body = _json(_packed(receipt))
    whose = {"fingerprint": fingerprint, **({} if run is None else {"run": run})}
    head = {"commit_version": _COMMIT_VERSION, **whose, "checksum": hash_of(body)}
    return _json(head)[:-1] + _BODY + body + b"}"


def _receipt_in(data: bytes, fingerprint: str, run: str | None) -> Receipt | None:
    """The receipt; None if it belongs to another run, plan or version. Raises ValueError, KeyError or TypeError if
    the data is not a commit."""
    head, _, body = data.partition(_BODY)
    values = parse_json(head + b"}")
    if values["commit_version"] not in _READ_VERSIONS or values["fingerprint"] != fingerprint:
        return None
    if None not in (run, values.get("run")) and values["run"] != run:
        return None
    if values["checksum"] != hash_of(body[:-1]):
        raise ValueError("not the receipt that was written")
    return _unpacked(parse_json(body[:-1]))


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _packed(receipt: Receipt) -> dict[str, Any]:
    """The receipt as a dict, with its rows as columns and its records as lists, which takes a third of the bytes."""
    values = {field.name: getattr(receipt, field.name) for field in fields(Receipt)}
    rows = {name: [_plain(value) for value in column] for name, column in columns_of(receipt.rows).items()}
    return values | {"rows": rows}


def _unpacked(values: dict[str, Any]) -> Receipt:
    """The inverse of `_packed`. Raises ValueError, KeyError or TypeError if the values are not a receipt."""
    rows: dict[str, Any] = values["rows"]
    count = len(rows["layer_name"])
    _check_columns(rows)
    rows |= {name: starmap(StoredRange, rows[name]) for name in BLOB_NAMES if name in rows}
    rows |= {name: map(sys.intern, rows[name]) for name in ("compression", "method")}
    rows["errors"] = (None if sums is None else ErrorSums(*sums) for sums in rows["errors"])
    check_types(Receipt(**{**values, "rows": ()}), "receipt")
    return Receipt(**{**values, "rows": tuple(records_of(rows, count))})


def _check_columns(rows: dict[str, Any]) -> None:
    """Raises TypeError if a value's type is not the receipt's, ValueError if a number does not fit the index."""
    for name, values in rows.items():
        nested = name in _NESTED
        expected = {list} if nested else _TYPES_OF_ROWS.get(name, {int})
        inner = (
            set(map(type, chain.from_iterable(values)))
            if nested and set(map(type, values)) <= {list}
            else set()
        )
        if not (set(map(type, values)) <= expected and inner <= {int}):
            raise TypeError(f"{name} has values of another type")
        if nested or expected == {int}:
            numbers = [*chain.from_iterable(values)] if nested else values
            most = _LARGEST_INT32 if name in _INT32 else _LARGEST_INT64
            if numbers and not -most <= min(numbers) <= max(numbers) <= most:
                raise ValueError(f"{name} has numbers that do not fit the index")


def _plain(value: Any) -> Any:
    if isinstance(value, ErrorSums) and not value.non_finite:
        return [*astuple(value)][:_FINITE_FIELDS]  # the others are 0, their default in ErrorSums
    return [*astuple(value)] if isinstance(value, (StoredRange, ErrorSums)) else value
