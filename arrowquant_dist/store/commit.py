"""run/commits/: a small object a finished shard, the first one wins. What is not committed does not exist.

A commit holds the whole receipt, and the fingerprint of the plan it belongs to: a zombie of a run that was
overwritten meanwhile cannot slip its part into the new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from arrowquant_dist.errors import NotFound, StorageError, TargetConflict
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.store.files import Store
from arrowquant_dist.store.receipt import Receipt, RowRecord, StoredRange

COMMITS_FOLDER = "run/commits"
_NAME = re.compile(rf"{COMMITS_FOLDER}/(\d{{5,}})\.json")
_COMMIT_VERSION = 2
_ROW_FIELDS = [field.name for field in fields(RowRecord)]
_RANGE_NAMES = [field.name for field in fields(StoredRange)]
_RECORD_COLUMNS = {
    "data": _RANGE_NAMES,
    "scales": _RANGE_NAMES,
    "zero_points": _RANGE_NAMES,
    "chunk_digests": _RANGE_NAMES,
    "errors": [field.name for field in fields(ErrorSums)],
}
_READERS = 16  # commits read side by side; each is one small request
_ATTEMPTS = 3  # a stale commit is removed and the place tried again


@dataclass(frozen=True, slots=True)
class Commit:
    """What is at a commit's path. receipt: None where it cannot be read, or is of another plan."""

    path: str
    receipt: Receipt | None


def commit_path(shard: int) -> str:
    return f"{COMMITS_FOLDER}/{shard:05d}.json"


def write_commit(store: Store, receipt: Receipt, fingerprint: str, is_current: Callable[[], bool]) -> bool:
    """Publishes the shard if nobody has. True: this receipt counts; False: another attempt's does.

    A commit of another plan, or one that is not whole, is in nobody's use and gives way if `is_current` says
    that the target's plan still has our fingerprint, else TargetConflict. StorageError where the outcome
    stays unknown; the part must not be deleted then.
    """
    path = commit_path(receipt.shard)
    values = {"commit_version": _COMMIT_VERSION, "fingerprint": fingerprint, "receipt": _packed(receipt)}
    data = json.dumps(values, separators=(",", ":")).encode()
    for _ in range(_ATTEMPTS):
        try:
            if store.create(path, data):
                return True
        except StorageError:
            # The answer may be lost and the write landed: our own attempt's id there says so.
            if _attempt_at(store, path, fingerprint) is None:
                raise
        winner = _attempt_at(store, path, fingerprint)
        if winner is not None:
            return winner == receipt.attempt
        if not is_current():
            message = "the run was overwritten by one of another plan; nothing of this one counts"
            raise TargetConflict(message, uri=store.uri)
        store.delete([path])
    raise StorageError("the commit could not be written; run the same command again", uri=store.url(path))


def read_commit(store: Store, path: str, fingerprint: str) -> Commit:
    """One commit; its receipt is None if there is none of this plan. StorageError."""
    try:
        values = json.loads(store.read(path))
        if values["commit_version"] != _COMMIT_VERSION or values["fingerprint"] != fingerprint:
            return Commit(path, None)
        receipt = _unpacked(values["receipt"])
    except (NotFound, ValueError, TypeError, KeyError, AttributeError):
        return Commit(path, None)
    return Commit(path, receipt if commit_path(receipt.shard) == path else None)


def read_commits(store: Store, fingerprint: str) -> list[Commit]:
    """All commits, by shard."""
    paths = [info.path for info in store.list(COMMITS_FOLDER) if is_commit(info.path)]
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(lambda path: read_commit(store, path, fingerprint), paths))


def is_commit(path: str) -> bool:
    return _NAME.fullmatch(path) is not None


def commits_by_shard(commits: Iterable[Commit]) -> dict[int, Receipt]:
    return {commit.receipt.shard: commit.receipt for commit in commits if commit.receipt is not None}


def _packed(receipt: Receipt) -> dict[str, Any]:
    """The receipt as a dict, its rows as columns and its records as lists: a third of the bytes."""
    values = receipt.to_dict()
    rows = {name: [_plain(row[name]) for row in values["rows"]] for name in _ROW_FIELDS}
    return values | {"rows": rows}


def _unpacked(values: dict[str, Any]) -> Receipt:
    """The receipt of `_packed`. ValueError, KeyError or TypeError where it is none."""
    columns = [[_named(name, value) for value in values["rows"][name]] for name in _ROW_FIELDS]
    rows = [dict(zip(_ROW_FIELDS, row, strict=True)) for row in zip(*columns, strict=True)]
    return Receipt.from_dict(values | {"rows": rows})


def _plain(value: Any) -> Any:
    return list(value.values()) if isinstance(value, dict) else value


def _named(column: str, value: Any) -> Any:
    names = _RECORD_COLUMNS.get(column)
    return dict(zip(names, value, strict=True)) if names and value is not None else value


def _attempt_at(store: Store, path: str, fingerprint: str) -> str | None:
    receipt = read_commit(store, path, fingerprint).receipt
    return receipt.attempt if receipt is not None else None
