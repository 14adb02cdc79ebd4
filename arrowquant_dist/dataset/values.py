"""The values of a row, and whether they are what was written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.format.digests import CHUNK_NBYTES, first_wrong_chunk, row_checksum
from arrowquant_dist.format.row import BLOB_COLUMNS, Blobs
from arrowquant_dist.storage.base import ByteRange


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """A block's own values, or bytes [start, start + len(data)) of its data with the whole of the others.

    blobs: as in StoredRow; chunk_digests empty in V1.
    """

    blobs: Blobs[np.ndarray]
    start: int = 0

    @classmethod
    def of(cls, blobs: Iterable[np.ndarray], start: int = 0) -> Values:
        """blobs: their bytes, uint8, in the order of Blobs."""
        typed = (raw.view(column.dtype) for raw, column in zip(blobs, BLOB_COLUMNS, strict=True))
        return cls(Blobs(*typed), start)


def check_finite_scales(values: Values, block: StoredBlock, url: str) -> None:
    """Raises CorruptWeights where a scale or zero point is NaN or inf. No checksum is needed to know that."""
    for name, numbers in (("scales", values.blobs.scales), ("zero_points", values.blobs.zero_points)):
        finite = np.isfinite(numbers)
        if not finite.all():
            problem = f"{name}[{int(np.argmin(finite))}] is not finite; quantize anew"
            raise CorruptWeights(problem, layer=block.header.layer_name, uri=url)


def check_digests(values: Values, block: StoredBlock, url: str, place: ByteRange) -> None:
    """Raises CorruptWeights where the row's checksum, or the digest of a chunk in its data, is another.

    values.start is a multiple of CHUNK_NBYTES, and its end too, or the end of the data. place: where the
    object has the data; the error names the chunk in it, or all of it where it is compressed. V1 rows have
    nothing to check.
    """
    if not block.header.checksum:
        return
    row, blobs, digests = block.header, values.blobs, values.blobs.chunk_digests.tobytes()
    if row_checksum(digests, blobs.scales, blobs.zero_points) != row.checksum:
        message = "checksum of scales, zero_points and chunk_digests differs; fetch the object again"
        raise CorruptWeights(message, layer=row.layer_name, uri=url)
    chunk = first_wrong_chunk(blobs.data, values.start, digests)
    if chunk is None:
        return
    start, stop = chunk * CHUNK_NBYTES, min((chunk + 1) * CHUNK_NBYTES, row.data_nbytes)
    where = (place.start, place.stop)
    if place.nbytes == row.data_nbytes:
        where = (place.start + start, place.start + stop)
    message = f"checksum of data[{start}:{stop}] differs; fetch the object again, or quantize anew"
    raise CorruptWeights(message, layer=row.layer_name, uri=url, byte_range=where)
