"""The values of a row, and checks that they are what was written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.format.digests import CHUNK_NBYTES, first_wrong_chunk, row_checksum
from arrowquant_dist.format.record import StoredRange
from arrowquant_dist.format.row import BLOB_COLUMNS, Blobs

_DTYPES = [np.dtype(column.dtype) for column in BLOB_COLUMNS]


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """All values of a block, or bytes [start, start + len(data)) of its data with all of the other values.

    blobs: as in StoredRow; chunk_digests is empty in V1.
    """

    blobs: Blobs[np.ndarray]
    start: int = 0

    @classmethod
    def of(cls, blobs: Iterable[np.ndarray], start: int = 0) -> Values:
        """blobs: the bytes of each blob, uint8, in the order of Blobs."""
        typed = [raw.view(dtype) for raw, dtype in zip(blobs, _DTYPES, strict=True)]
        return cls(Blobs(*typed), start)


def check_values(values: Values, block: StoredBlock, place: StoredRange, url: str, *, verify: bool) -> None:
    """Raises CorruptWeights if a scale or zero point is not finite, or, with verify, if a checksum differs. place, url:
    as in `check_chunks`."""
    check_finite_scales(values, block, url)
    if verify:
        check_row(values, block, url)
        check_chunks(values.blobs.data, values.start, values, block, place, url)


def check_finite_scales(values: Values, block: StoredBlock, url: str) -> None:
    """Raises CorruptWeights if a scale or zero point is NaN or inf. This is checked even without `verify`."""
    for name, numbers in (("scales", values.blobs.scales), ("zero_points", values.blobs.zero_points)):
        if numbers.size and not (finite := np.isfinite(numbers)).all():
            problem = f"{name}[{int(np.argmin(finite))}] is not finite; quantize again"
            raise CorruptWeights(problem, layer=block.header.layer_name, uri=url)


def check_row(values: Values, block: StoredBlock, url: str) -> None:
    """Raises CorruptWeights if the row's checksum, which is over all blobs but the data, differs. V1 rows have none."""
    row, blobs = block.header, values.blobs
    if (
        row.checksum
        and row_checksum(blobs.chunk_digests.data, blobs.scales, blobs.zero_points) != row.checksum
    ):
        message = "checksum of scales, zero_points and chunk_digests differs; fetch the object again"
        raise CorruptWeights(message, layer=row.layer_name, uri=url)


def check_chunks(
    data: np.ndarray, start: int, values: Values, block: StoredBlock, place: StoredRange, url: str
) -> None:
    """Raises CorruptWeights if the digest of a chunk of `data` differs.

    data: bytes [start, start + len(data)) of the row's data, which end at a multiple of CHUNK_NBYTES or with the row's
    data. start: a multiple of CHUNK_NBYTES. values: values with the row's digests. place: where the data is in the
    object; the error names the byte range of the chunk, or of all the data if it is compressed. url: that of the
    object. In V1 rows there is nothing to check.
    """
    row = block.header
    if not row.checksum or not data.size:
        return
    chunk = first_wrong_chunk(data, start, values.blobs.chunk_digests)
    if chunk is None:
        return
    start, stop = chunk * CHUNK_NBYTES, min((chunk + 1) * CHUNK_NBYTES, row.data_nbytes)
    where = (place.offset, place.offset + place.stored_nbytes)
    if place.stored_nbytes == row.data_nbytes:
        where = (place.offset + start, place.offset + stop)
    message = f"checksum of data[{start}:{stop}] differs; fetch the object again, or quantize again"
    raise CorruptWeights(message, layer=row.layer_name, uri=url, byte_range=where)
