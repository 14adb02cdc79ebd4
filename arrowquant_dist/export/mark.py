"""The mark in each file of an export: whose it is, long before export.json says so.

It ends with the digest of the code that wrote the file. What one version has begun another cannot complete, since it
might write other bytes, and whoever has updated in between is told so.
"""

from __future__ import annotations

import re

from arrowquant_dist.code_digest import export_digest
from arrowquant_dist.export_names import MARK_KEY
from arrowquant_dist.storage.base import ByteRange, Store

OTHER_VERSION = (
    "another version of arrowquant-dist began an export here, or left a file of one; finish it with that version, "
    "choose another folder, or --overwrite to begin anew"
)

_HEAD_NBYTES, _TAIL_NBYTES = 64 << 10, 64 << 10  # of a file, where its mark is
# JSON has quotes between the two, GGUF a type and a length, Parquet's footer the like.
_MARK = re.compile(
    re.escape(MARK_KEY).encode() + rb".{1,20}?(xxh3_128:[0-9a-f]{32}(?:-[0-9a-f]{16})?)", re.DOTALL
)


def made_mark(digest: str, code: str) -> str:
    """digest: hex digits of all that decides what is written. code: the digest of the code that writes it."""
    return f"xxh3_128:{digest}-{code}"


def is_of_other_code(mark: str) -> bool:
    """Marks of the first releases have no code, which is another than this."""
    return not mark.endswith(f"-{export_digest()}")


def mark_of(store: Store, path: str, nbytes: int) -> str | None:
    """The mark of a file of weights, whichever export's; None where it has none. nbytes: its size."""
    ends = (ByteRange(0, min(nbytes, _HEAD_NBYTES)), ByteRange(max(0, nbytes - _TAIL_NBYTES), nbytes))
    for part in ends:
        found = _MARK.search(store.read_range(path, part).tobytes())
        if found is not None:
            return found[1].decode()
    return None
