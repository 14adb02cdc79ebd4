"""Where everything of a target lies, and what one listing of it tells."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from arrowquant_dist.storage.base import TEMPORARY_MARK, Store
from arrowquant_dist.target.commit import is_commit
from arrowquant_dist.target.index import INDEX_PATH
from arrowquant_dist.target.manifest import MANIFEST_PATH, ManifestPart

PLAN_PATH = "run/plan.arrow"
WEIGHTS_FOLDER = "weights"
REPORT_FOLDER = "report"

_REPORT = re.compile(rf"{REPORT_FOLDER}/(report\.(json|md|html)|layers\.parquet)")
_PART = re.compile(rf"{WEIGHTS_FOLDER}/shard=\d{{5,}}/part-[^/]+\.[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Listing:
    """Every object at a target, as one listing saw them.

    sizes: {path under the target: bytes}. beside: files of others that lay beside a run of ours, which is cleared now.
    """

    sizes: Mapping[str, int]
    beside: frozenset[str] = frozenset()

    @classmethod
    def of(cls, store: Store) -> Self:
        return cls({info.path: info.nbytes for info in store.list()})

    def __contains__(self, path: str) -> bool:
        return path in self.sizes

    def holds(self, path: str, nbytes: int) -> bool:
        """Whether the object is there in its size."""
        return self.sizes.get(path) == nbytes

    def missing(self, parts: Iterable[ManifestPart]) -> list[str]:
        """Paths of those that are not there in their size."""
        return [part.path for part in parts if not self.holds(part.path, part.nbytes)]

    @property
    def commits(self) -> list[str]:
        return [path for path in self.sizes if is_commit(path)]

    @property
    def ours(self) -> list[str]:
        """What only this package makes in a target that has a plan or manifest of ours."""
        return [path for path in self.sizes if _is_ours(path)]

    @property
    def foreign(self) -> list[str]:
        """What speaks against starting a run here: everything, where nothing of ours says that one was started."""
        return sorted(path for path in self.sizes if path not in self.beside and not _is_temporary(path))

    def cleared_of(self, paths: Collection[str]) -> Listing:
        """What is left when `paths`, everything of ours, are deleted. It does not speak against a new run."""
        left = {path: nbytes for path, nbytes in self.sizes.items() if path not in paths}
        return Listing(left, frozenset(left))

    def leftovers(self, parts: Collection[str]) -> list[str]:
        """Parts that are not among `parts`, and temporary files."""
        kept = set(parts)
        return [
            path
            for path in self.sizes
            if _is_temporary(path) or (_PART.fullmatch(path) is not None and path not in kept)
        ]


def part_path(shard: int, attempt: str, suffix: str = "parquet") -> str:
    """Where an attempt at a shard puts its object. suffix: says what a sink writes; lower-case letters and digits."""
    return f"{WEIGHTS_FOLDER}/shard={shard:05d}/part-{attempt}.{suffix}"


def _is_ours(path: str) -> bool:
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
