"""Reads files in the `report/` of a target and compares them with what the manifest says about them."""

from __future__ import annotations

from pathlib import PurePosixPath

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.manifest import Manifest, StoredFile

WRITE_AGAIN = "write it again with `quantize --overwrite`"


def named_file(manifest: Manifest, path: str) -> StoredFile | None:
    """The manifest's entry for the file that a finished run has at `path`. It is found by its name, in any folder."""
    named = {PurePosixPath(file.path).name: file for file in manifest.report}
    return named.get(PurePosixPath(path).name)


def read_named(store: Store, path: str, said: StoredFile | None, what: str) -> bytes:
    """The content of the file at `path`. said: the manifest's entry for it, if there is one. what: what to call the
    file in the error, such as `report`.

    Raises NotFound if the file is missing, and InvalidCheckpoint if it is not the one that the manifest names.
    """
    content = store.read(path)
    if said is not None and StoredFile.of(path, content) != said:
        raise InvalidCheckpoint(f"not the {what} that the manifest names; {WRITE_AGAIN}", uri=store.url(path))
    return content
