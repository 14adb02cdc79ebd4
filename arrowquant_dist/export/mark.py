"""The mark in each file of an export: tells which export the file belongs to long before export.json is written.

It ends with the digest of the code that wrote the file. An export begun by one version cannot be completed by another,
which might write other bytes; a user who has updated in between is told so.
"""

from __future__ import annotations

import re

from arrowquant_dist.code_digest import export_digest
from arrowquant_dist.export_names import MARK_KEY
from arrowquant_dist.storage.base import ByteRange, Store

OTHER_VERSION = (
    "another version of arrowquant-dist began an export here, or left a file of one; finish it with that version, "
    "choose another folder, or use --overwrite to start again"
)

_HEAD_NBYTES, _TAIL_NBYTES = 64 << 10, 64 << 10  # the parts of a file that may contain its mark
# Between key and mark, JSON has quotes, GGUF a type and a length, Parquet's footer something similar.
_MARK = re.compile(
    re.escape(MARK_KEY).encode() + rb".{1,20}?(xxh3_128:[0-9a-f]{32}(?:-[0-9a-f]{16})?)", re.DOTALL
)


def made_mark(digest: str, code: str) -> str:
    """Returns a mark. digest: hex digits for all that decides what is written. code: digest of the writing code."""
    return f"xxh3_128:{digest}-{code}"


def is_of_other_code(mark: str) -> bool:
    """Returns whether other code wrote the mark. Marks of the first releases have no code, which counts as other."""
    return not mark.endswith(f"-{export_digest()}")


def mark_of(store: Store, path: str, nbytes: int) -> str | None:
    """Returns the mark of a file of weights, of any export; None if it has none. nbytes: size of the file."""
    ends = (ByteRange(0, min(nbytes, _HEAD_NBYTES)), ByteRange(max(0, nbytes - _TAIL_NBYTES), nbytes))
    for part in ends:
        found = _MARK.search(store.read_range(path, part).tobytes())
        if found is not None:
            return found[1].decode()
    return None
