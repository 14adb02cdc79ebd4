"""Files of a target's `report/` that its manifest names."""

from __future__ import annotations

from pathlib import PurePosixPath

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.manifest import Manifest, StoredFile

WRITE_AGAIN = "write it again with `quantize --overwrite`"


def named_file(manifest: Manifest, path: str) -> StoredFile | None:
    """What the manifest says of the file that is at `path` in a finished run: by its name, wherever it lies."""
    named = {PurePosixPath(file.path).name: file for file in manifest.report}
    return named.get(PurePosixPath(path).name)


def read_named(store: Store, path: str, said: StoredFile | None, what: str) -> bytes:
    """The content of the file at `path`. said: what the manifest says of it, if anything. what: `report`.

    Raises NotFound, and InvalidCheckpoint where it is another one.
    """
    content = store.read(path)
    if said is not None and StoredFile.of(path, content) != said:
        raise InvalidCheckpoint(f"not the {what} that the manifest names; {WRITE_AGAIN}", uri=store.url(path))
    return content
