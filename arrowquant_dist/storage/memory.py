"""Memory held by reading and writing at a URI, besides the caller's own; the plan counts it for each worker."""

from __future__ import annotations

from arrowquant_dist.config import Storage
from arrowquant_dist.storage.disk import HELD_NBYTES
from arrowquant_dist.storage.uris import is_local


def reading_nbytes(uri: str, storage: Storage, wanted_nbytes: int) -> int:
    """Memory of the requests in flight. wanted_nbytes: the most that is requested at a time, which limits the ranges
    in flight.

    0 for local files, which the kernel reads into the caller's memory. S3's ranges arrive there in pieces; other
    clients build each range whole, and hold one of its pieces besides.
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
    """Memory of one object that is being written. object_nbytes: its final size; no more than that is ever held."""
    if is_local(uri):
        return 0 if storage.direct_writes == "never" else min(HELD_NBYTES, object_nbytes)
    from arrowquant_dist.storage.remote.filesystem import COPIES_OF_A_PART
    from arrowquant_dist.storage.remote.open import is_s3

    transfer = storage.transfer
    if is_s3(uri):
        return min((transfer.parts_in_flight + 1) * transfer.upload_bytes, object_nbytes)
    return COPIES_OF_A_PART * min(2 * transfer.upload_bytes, object_nbytes)
