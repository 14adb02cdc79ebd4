"""Where everything in a target is stored, and what one listing of the target tells.

There are two kinds of names. Plain names (the plan, the commits, index.parquet, report/report.json, the manifest,
files copied from the source) are the same in every run: an object with a plain name is created only where there is
none, and deleted only if it still is the one that was seen. (The only exceptions are report/evaluation.json and .md:
they are replaced each time that a finished dataset is evaluated, and the manifest does not name them.) Own names
contain the id of an attempt or a run, which is never used twice: parts, temporary files, and the index and the report
of a run that found their plain names taken by another run's.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import xxhash

from arrowquant_dist.storage.base import Store, is_temporary
from arrowquant_dist.storage.regular import obstructed
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.commit import COMMITS_FOLDER, is_commit
from arrowquant_dist.target.index import INDEX_PATH
from arrowquant_dist.target.manifest import MANIFEST_PATH, ManifestPart, StoredFile

PLAN_PATH = "run/plan.arrow"
WEIGHTS_FOLDER = "weights"
REPORT_FOLDER = "report"
_FOLDERS = (WEIGHTS_FOLDER, "run", COMMITS_FOLDER, REPORT_FOLDER)

_RUN = "[0-9a-f]{32}"
_REPORT = re.compile(
    rf"{REPORT_FOLDER}/(?:({_RUN})/)?(?:report\.(?:json|md|html)|evaluation\.(?:json|md)|layers\.parquet)"
)
_OWN_INDEX = re.compile(rf"index-({_RUN})-[0-9a-f]{{16}}\.parquet")
_PART = re.compile(rf"{WEIGHTS_FOLDER}/shard=\d{{5,}}/part-[^/]+\.[a-z0-9]+")
_PART_OF_A_WORKER = re.compile(rf"{WEIGHTS_FOLDER}/shard=\d{{5,}}/part-[0-9a-f]{{16}}\.[a-z0-9]+")
_NOTE = re.compile(rf"run/kept-{_RUN}\.json")


@dataclass(frozen=True, slots=True)
class Listing:
    """Every object at a target, as seen by one listing.

    sizes: {path under the target: bytes}. beside: foreign files beside a run of ours that has been cleared. versions:
    {path: version of the object}.
    """

    sizes: Mapping[str, int]
    beside: frozenset[str] = frozenset()
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> Self:
        found = store.list()
        for folder in links(store):  # a listing does not follow links, since they may lead anywhere
            found += store.list(folder.relative_to(store.uri).as_posix())
        sizes = {info.path: info.nbytes for info in found}
        return cls(sizes, versions={info.path: info.version for info in found})

    def __contains__(self, path: str) -> bool:
        return path in self.sizes

    def holds(self, path: str, nbytes: int) -> bool:
        """Whether the object is there, with this size."""
        return self.sizes.get(path) == nbytes

    def missing(self, objects: Iterable[ManifestPart | StoredFile]) -> list[str]:
        """Paths of the objects that are not there with their sizes."""
        return [one.path for one in objects if not self.holds(one.path, one.nbytes)]

    @property
    def commits(self) -> list[str]:
        return [path for path in self.sizes if is_commit(path)]

    @property
    def ours(self) -> list[str]:
        """Paths that, in a target with a plan or manifest of ours, only this package creates."""
        return [path for path in self.sizes if _is_ours(path)]

    @property
    def own(self) -> list[str]:
        """Those of `ours` that are own names."""
        return [path for path in self.sizes if _has_own_name(path)]

    @property
    def notes(self) -> list[str]:
        """The notes of which copied files a clear has left (clear.py)."""
        return [path for path in self.sizes if _NOTE.fullmatch(path) is not None]

    @property
    def traces(self) -> list[str]:
        """Paths that by their names alone show that a run of ours was here, for a target without plan and manifest."""
        return [path for path in self.foreign if is_commit(path) or _is_surely_ours(path)]

    @property
    def strange(self) -> list[str]:
        """Foreign paths that are no names of ours: given traces of a run, they can only be copied files."""
        return [path for path in self.foreign if not _is_ours(path)]

    @property
    def foreign(self) -> list[str]:
        """Paths that forbid starting a run here: every file, unless something shows that a run of ours was started."""
        return sorted(path for path in self.sizes if path not in self.beside and not is_temporary(path))

    def after_clear(self) -> Listing:
        """The same listing, in which nothing forbids a new run."""
        return replace(self, beside=frozenset(self.sizes))

    def leftovers(self, parts: Collection[str], run: str | None = None) -> list[str]:
        """Parts that are not in `parts`, temporary files, and objects with own names of other runs than `run`."""
        kept = set(parts)
        return [
            path
            for path in self.sizes
            if is_temporary(path)
            or (_PART.fullmatch(path) is not None and path not in kept)
            or _owner(path) not in (None, run)
        ]


def links(store: Store) -> list[Path]:
    """The folders of the target that are symbolic links, perhaps to another disk. Only local targets can have any."""
    if not is_local(store.uri):
        return []
    paths = (Path(store.uri, name) for name in _FOLDERS)
    return [path for path in paths if os.path.islink(path)]  # noqa: PTH114 - pathlib raises where names are too long


def odd_places(store: Store) -> list[tuple[str, str]]:
    """(path, what is there) for folders, FIFOs and dangling links whose names are those of a run's objects. A listing
    shows none of them; only a local target can have any."""
    if not is_local(store.uri):
        return []
    root = Path(store.uri)
    found = list(obstructed(root, _is_ours))
    for folder in links(store):
        inside = folder.relative_to(root).as_posix()
        found += [
            (f"{inside}/{path}", what)
            for path, what in obstructed(folder, lambda path: _is_ours(f"{inside}/{path}"))  # noqa: B023
        ]
    return sorted(found)


def part_path(shard: int, attempt: str, suffix: str = "parquet") -> str:
    """The path of the object that an attempt writes for a shard. suffix: names the sink's format; lower-case letters
    and digits."""
    return f"{WEIGHTS_FOLDER}/shard={shard:05d}/part-{attempt}.{suffix}"


def own_index_path(run: str, index: bytes) -> str:
    """The path of the index of a run that finds INDEX_PATH taken by another index; it differs for each index."""
    return f"index-{run}-{xxhash.xxh3_64_hexdigest(index)}.parquet"


def own_report_path(run: str, path: str) -> str:
    """The path of a report file of a run that finds the plain path taken by another run's. path: the plain path."""
    return f"{REPORT_FOLDER}/{run}/{path.removeprefix(f'{REPORT_FOLDER}/')}"


def new_note_path() -> str:
    return f"run/kept-{uuid.uuid4().hex}.json"


def _is_ours(path: str) -> bool:
    return (
        path in (PLAN_PATH, MANIFEST_PATH, INDEX_PATH)
        or _REPORT.fullmatch(path) is not None
        or is_commit(path)
        or _has_own_name(path)
    )


def _has_own_name(path: str) -> bool:
    return (
        _PART.fullmatch(path) is not None
        or _owner(path) is not None
        or _NOTE.fullmatch(path) is not None
        or is_temporary(path)
    )


def _is_surely_ours(path: str) -> bool:
    """Whether the name alone shows that the object is ours, for a target without plan and manifest."""
    own = (_PART_OF_A_WORKER, _OWN_INDEX, _NOTE)
    return any(name.fullmatch(path) is not None for name in own)


def _owner(path: str) -> str | None:
    """The id of the run in the name of an index or a report file; None if there is none."""
    found = _OWN_INDEX.fullmatch(path) or _REPORT.fullmatch(path)
    return found[1] if found is not None else None
