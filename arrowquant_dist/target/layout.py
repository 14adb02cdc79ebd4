"""Where everything of a target lies, and what one listing of it tells.

Names are of two kinds. Plain ones (the plan, the commits, index.parquet, report/report.json, the manifest, what is
copied from the source) are the same in every run: an object there is created where nothing is, and deleted only if it
still is the one that was seen. (report/evaluation.json and .md alone are replaced, each time that a finished dataset is
evaluated; the manifest does not name them.) Own ones carry the id of an attempt or a run, which nobody is given twice:
parts, what is temporary, and the index and the report of a run that found their plain names taken by another's.
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
    """Every object at a target, as one listing saw them.

    sizes: {path under the target: bytes}. beside: files of others that lay beside a run of ours, which is cleared now.
    versions: {path: that of the object}.
    """

    sizes: Mapping[str, int]
    beside: frozenset[str] = frozenset()
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> Self:
        found = store.list()
        for folder in links(store):  # which a listing does not follow: a link may lead anywhere
            found += store.list(folder.relative_to(store.uri).as_posix())
        sizes = {info.path: info.nbytes for info in found}
        return cls(sizes, versions={info.path: info.version for info in found})

    def __contains__(self, path: str) -> bool:
        return path in self.sizes

    def holds(self, path: str, nbytes: int) -> bool:
        """Whether the object is there in its size."""
        return self.sizes.get(path) == nbytes

    def missing(self, objects: Iterable[ManifestPart | StoredFile]) -> list[str]:
        """Paths of those that are not there in their size."""
        return [one.path for one in objects if not self.holds(one.path, one.nbytes)]

    @property
    def commits(self) -> list[str]:
        return [path for path in self.sizes if is_commit(path)]

    @property
    def ours(self) -> list[str]:
        """What only this package makes in a target that has a plan or manifest of ours."""
        return [path for path in self.sizes if _is_ours(path)]

    @property
    def own(self) -> list[str]:
        """Of these, what has a name of its own."""
        return [path for path in self.sizes if _has_own_name(path)]

    @property
    def notes(self) -> list[str]:
        """Where a clear says which copied files it has left (clear.py)."""
        return [path for path in self.sizes if _NOTE.fullmatch(path) is not None]

    @property
    def traces(self) -> list[str]:
        """What by its name alone says that a run of ours was here, where no plan and no manifest does."""
        return [path for path in self.foreign if is_commit(path) or _is_surely_ours(path)]

    @property
    def strange(self) -> list[str]:
        """What nothing but the source has a name for, if these are traces."""
        return [path for path in self.foreign if not _is_ours(path)]

    @property
    def foreign(self) -> list[str]:
        """What speaks against starting a run here: everything, where nothing of ours says that one was started."""
        return sorted(path for path in self.sizes if path not in self.beside and not is_temporary(path))

    def after_clear(self) -> Listing:
        """The same, of which nothing speaks against a new run."""
        return replace(self, beside=frozenset(self.sizes))

    def leftovers(self, parts: Collection[str], run: str | None = None) -> list[str]:
        """Parts that are not among `parts`, temporary files, and what other runs than `run` have under own names."""
        kept = set(parts)
        return [
            path
            for path in self.sizes
            if is_temporary(path)
            or (_PART.fullmatch(path) is not None and path not in kept)
            or _owner(path) not in (None, run)
        ]


def links(store: Store) -> list[Path]:
    """The folders of the target that are links, to another disk perhaps. Only local ones can be."""
    if not is_local(store.uri):
        return []
    paths = (Path(store.uri, name) for name in _FOLDERS)
    return [path for path in paths if os.path.islink(path)]  # noqa: PTH114 - pathlib raises where names are too long


def odd_places(store: Store) -> list[tuple[str, str]]:
    """(path, what is there) of folders, FIFOs and links to nothing that have a name of what a run writes. A listing has
    none of them; only a local target can."""
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
    """Where an attempt at a shard puts its object. suffix: says what a sink writes; lower-case letters and digits."""
    return f"{WEIGHTS_FOLDER}/shard={shard:05d}/part-{attempt}.{suffix}"


def own_index_path(run: str, index: bytes) -> str:
    """Of a run that finds INDEX_PATH taken by another index: each has a name of its own."""
    return f"index-{run}-{xxhash.xxh3_64_hexdigest(index)}.parquet"


def own_report_path(run: str, path: str) -> str:
    """Of a run that finds a file of the report taken by another run's. path: the plain one."""
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
    """By its name alone, where no plan and no manifest says that a run was here."""
    own = (_PART_OF_A_WORKER, _OWN_INDEX, _NOTE)
    return any(name.fullmatch(path) is not None for name in own)


def _owner(path: str) -> str | None:
    """The run whose id is in the name of an index or a file of a report."""
    found = _OWN_INDEX.fullmatch(path) or _REPORT.fullmatch(path)
    return found[1] if found is not None else None
