"""The place OUT: a folder for each config's dataset, and the report next to them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.config import Storage
from arrowquant_dist.config.checks import invalid
from arrowquant_dist.errors import TargetConflict, listed
from arrowquant_dist.storage.base import Store, is_temporary
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_ambiguous, redact
from arrowquant_dist.target.layout import PLAN_PATH
from arrowquant_dist.target.manifest import MANIFEST_PATH

JSON_PATH, MARKDOWN_PATH, PAGE_PATH = "validation.json", "validation.md", "validation.html"
PATHS = (MARKDOWN_PATH, PAGE_PATH, JSON_PATH)  # the JSON is written last: if it is there, so are the others


@dataclass(frozen=True, slots=True)
class ValidationPlace:
    """The folder or URL that the validation writes to. out: the place as it was given, which may have credentials."""

    out: str
    store: Store

    @classmethod
    def of(cls, out: str, storage: Storage) -> ValidationPlace:
        if is_ambiguous(out):
            message = f"{redact(out)} has an empty name, `.` or `..` in it; spell it without them"
            raise invalid("out", message)
        return cls(out.rstrip("/") or out, open_store(out, storage))

    def target(self, config: str) -> str:
        """The path or URL of a config's dataset."""
        return f"{self.out}/{config}"

    def refuse_others(self, configs: Collection[str]) -> None:
        """Raises TargetConflict if something other than a validation is here. Datasets of other configs may be here;
        they are not touched."""
        if self.store.exists(""):
            raise TargetConflict("this is a file; choose an empty or new folder", uri=self.store.uri)
        tops: dict[str, set[str]] = {}
        for info in self.store.list():
            top, _, below = info.path.partition("/")
            if not is_temporary(info.path):
                tops.setdefault(top, set()).add(below)
        known = {*configs, *PATHS}
        strange = [top for top, below in tops.items() if top not in known and not _is_target(below)]
        if strange:
            message = f"the folder holds other files ({listed(sorted(strange))}); choose an empty or new one"
            raise TargetConflict(message, uri=self.store.uri)

    def withdraw(self) -> None:
        """Removes the report of an earlier validation, if there is one: the JSON first, for if it is there, so are the
        others."""
        self.store.delete(reversed(PATHS))

    def write(self, values: dict[str, Any], markdown: str, page: str) -> None:
        """Writes the report in its three forms."""
        content = {
            MARKDOWN_PATH: markdown.encode(),
            PAGE_PATH: page.encode(),
            JSON_PATH: json.dumps(values, indent=2, allow_nan=False).encode() + b"\n",
        }
        for path in PATHS:
            self.store.write(path, content[path])


def _is_target(paths: Collection[str]) -> bool:
    """Whether a folder with these paths is a dataset, finished or not."""
    return MANIFEST_PATH in paths or PLAN_PATH in paths
