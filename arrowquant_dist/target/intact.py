"""Checks that parts hold what was written, by comparing their bytes with the hashes in their receipts.

On a local disk, a run that resumes reads the parts of the earlier run once: after a power loss, a disk that had
confirmed the writes may have the files in their sizes but with other bytes. On object stores it does not: these
confirm an object only when it is safe, after comparing what they received with the checksums of what was sent;
reading everything again would take as long as quantizing it.

4 parts are read at a time, in pieces of 8 MiB. Measured on a busy virtual machine with one thread: 2.3 GB/s in the
first pass over files just written, 6.8 GB/s from the page cache.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import xxhash

from arrowquant_dist.errors import NotFound, StorageError
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.receipt import Receipt

_READ_NBYTES = 8 << 20  # of each part at a time
_READERS = 4
_LOG = logging.getLogger("arrowquant_dist.resume")


def hash_of_object(
    store: Store, path: str, nbytes: int, on_bytes: Callable[[int], None] = lambda _: None
) -> str:
    """`xxh3_128:<hex>` of an object of `nbytes` bytes. on_bytes: called after each read with the number of bytes read.

    Raises NotFound and StorageError.
    """
    state = xxhash.xxh3_128()
    memory = np.empty(min(_READ_NBYTES, nbytes), np.uint8)
    for start in range(0, nbytes, _READ_NBYTES):
        piece = memory[: min(_READ_NBYTES, nbytes - start)]
        store.read_into(path, start, piece)
        state.update(piece.data)
        on_bytes(piece.nbytes)
    return f"xxh3_128:{state.hexdigest()}"


def sound_shards(store: Store, receipts: Mapping[int, Receipt]) -> set[int]:
    """The shards whose parts hold what their receipts say. Every part is read."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="hash") as readers:
        are_sound = list(readers.map(partial(_is_sound, store), receipts.values()))
    return {shard for shard, is_sound in zip(receipts, are_sound, strict=True) if is_sound}


def without_damaged(store: Store, receipts: Mapping[int, Receipt]) -> dict[int, Receipt]:
    """The receipts of an earlier run whose parts are undamaged; damaged parts are deleted, with a warning for each.

    A part never changes once it is committed, so nobody needs a part with another hash, and a commit without its part
    is stale for everybody: the next attempt takes the next place.
    """
    if not is_local(store.uri):
        return dict(receipts)
    sound = sound_shards(store, receipts)
    damaged = [receipt.part for shard, receipt in receipts.items() if shard not in sound]
    for part in damaged:
        _LOG.warning(
            "quantizing it again, since its bytes are not those that were written: %s", store.url(part)
        )
    store.delete(damaged)
    return {shard: receipt for shard, receipt in receipts.items() if shard in sound}


def _is_sound(store: Store, receipt: Receipt) -> bool:
    """Whether the part is undamaged. It counts as damaged only after a second read, since one may have gone wrong."""
    try:
        return any(hash_of_object(store, receipt.part, receipt.nbytes) == receipt.hash for _ in range(2))
    except NotFound:
        return False
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno != errno.EIO:
            raise  # the system's error, not damage to the part
        return False  # truncated meanwhile, or the disk has lost a part of it
