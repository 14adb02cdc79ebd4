"""Whether parts hold what was written: their bytes against the hashes of their receipts.

A run that resumes reads the parts of the run before it once, on local disk: a disk that said that they were there and
lost power all the same may have them in their size with other bytes. Not on object stores: these say that an object is
there when it is safe, and have compared what came with the checksums of what was sent; to read all of it again would
take as long as to quantize it.

4 parts at a time, in 8 MiB each. Measured on a busy virtual machine, one thread: 2.3 GB/s in the first pass over files
that were written just before, 6.8 GB/s where they are in the page cache.
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

_READ_NBYTES = 8 << 20  # at a time, in each of
_READERS = 4
_LOG = logging.getLogger("arrowquant_dist.resume")


def hash_of_object(
    store: Store, path: str, nbytes: int, on_bytes: Callable[[int], None] = lambda _: None
) -> str:
    """`xxh3_128:<hex>` of an object of so many bytes. on_bytes: called with how many were read just now.

    NotFound, StorageError.
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
    """The shards whose parts hold what their receipts say; every part is read."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="hash") as readers:
        are_sound = list(readers.map(partial(_is_sound, store), receipts.values()))
    return {shard for shard, is_sound in zip(receipts, are_sound, strict=True) if is_sound}


def without_damaged(store: Store, receipts: Mapping[int, Receipt]) -> dict[int, Receipt]:
    """The receipts of an earlier run whose parts are what they say; the others' parts are deleted, and each is told of.

    A part never changes once it is committed, so one with another hash is nobody's any more, and a commit without its
    part is stale for everybody: the next attempt takes its place.
    """
    if not is_local(store.uri):
        return dict(receipts)
    sound = sound_shards(store, receipts)
    damaged = [receipt.part for shard, receipt in receipts.items() if shard not in sound]
    for part in damaged:
        _LOG.warning("done again, since it holds other bytes than were written: %s", store.url(part))
    store.delete(damaged)
    return {shard: receipt for shard, receipt in receipts.items() if shard in sound}


def _is_sound(store: Store, receipt: Receipt) -> bool:
    """Two readings have to agree that it is not: one may have gone wrong on its way."""
    try:
        return any(hash_of_object(store, receipt.part, receipt.nbytes) == receipt.hash for _ in range(2))
    except NotFound:
        return False
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno != errno.EIO:
            raise  # not its fault
        return False  # cut meanwhile, or the disk has lost some of it
