"""What reading and writing at a URI hold in memory, besides that of the caller: a plan counts it for each worker."""

from __future__ import annotations

from arrowquant_dist.config import Storage
from arrowquant_dist.storage.disk import HELD_NBYTES
from arrowquant_dist.storage.uris import is_local


def reading_nbytes(uri: str, storage: Storage, wanted_nbytes: int) -> int:
    """Of requests in flight. wanted_nbytes: the most that is asked for at a time: ranges beyond it are never there.

    Nothing for local files, which are read into the caller's memory by the kernel. S3's ranges come into it by pieces;
    other clients make each range whole, and then one of its pieces.
    """
    if is_local(uri):
        return 0
    from arrowquant_dist.storage.remote.filesystem import COPIES_OF_A_RANGE
    from arrowquant_dist.storage.remote.open import is_s3
    from arrowquant_dist.storage.remote.s3 import READ_NBYTES

    transfer = storage.transfer
    if is_s3(uri):
        return min(transfer.requests * min(transfer.range_bytes, READ_NBYTES), wanted_nbytes)
    return COPIES_OF_A_RANGE * min(transfer.requests * transfer.range_bytes, wanted_nbytes)


def writing_nbytes(uri: str, storage: Storage, object_nbytes: int) -> int:
    """Of one object that is written. object_nbytes: how large it gets; no more of it than that is ever there."""
    if is_local(uri):
        return 0 if storage.direct_writes == "never" else min(HELD_NBYTES, object_nbytes)
    from arrowquant_dist.storage.remote.filesystem import COPIES_OF_A_PART
    from arrowquant_dist.storage.remote.open import is_s3

    transfer = storage.transfer
    if is_s3(uri):
        return min((transfer.parts_in_flight + 1) * transfer.upload_bytes, object_nbytes)
    return COPIES_OF_A_PART * min(2 * transfer.upload_bytes, object_nbytes)
