"""The values of a row, and whether they are what was written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.dataset.layers import DIGEST_NBYTES, StoredBlock
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.format.schema import CHUNK_NBYTES, chunk_digests, row_checksum
from arrowquant_dist.storage.base import ByteRange


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """A block's own values, or bytes [start, start + len(data)) of its data with the whole of the others.

    data: uint8, packed codes or raw. scales, zero_points: float32. chunk_digests: as stored, b"" in V1.
    """

    data: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    chunk_digests: bytes
    start: int = 0


def check_finite(values: Values, block: StoredBlock, url: str) -> None:
    """Raises CorruptWeights where a scale or zero point is NaN or inf. No checksum is needed to know that."""
    for name, numbers in (("scales", values.scales), ("zero_points", values.zero_points)):
        finite = np.isfinite(numbers)
        if not finite.all():
            problem = f"{name}[{int(np.argmin(finite))}] is not finite; quantize anew"
            raise CorruptWeights(problem, layer=block.layer_name, uri=url)


def check_digests(values: Values, block: StoredBlock, url: str, place: ByteRange) -> None:
    """Raises CorruptWeights where the row's checksum, or the digest of a chunk in `values.data`, is another.

    values.start is a multiple of CHUNK_NBYTES, and its end too, or the end of the data. place: where the
    object has the data; the error names the chunk in it, or all of it where it is compressed. V1 rows have
    nothing to check.
    """
    if not block.checksum:
        return
    if row_checksum(values.chunk_digests, values.scales, values.zero_points) != block.checksum:
        message = "checksum of scales, zero_points and chunk_digests differs; fetch the object again"
        raise CorruptWeights(message, layer=block.layer_name, uri=url)
    first = values.start // CHUNK_NBYTES
    found = chunk_digests(values.data)
    expected = values.chunk_digests[first * DIGEST_NBYTES :][: len(found)]
    if found == expected:
        return
    index = next(i for i in range(0, len(found), DIGEST_NBYTES) if found[i:][:16] != expected[i:][:16])
    chunk = first + index // DIGEST_NBYTES
    start, stop = chunk * CHUNK_NBYTES, min((chunk + 1) * CHUNK_NBYTES, block.data_nbytes)
    where = (place.start, place.stop)
    if place.nbytes == block.data_nbytes:
        where = (place.start + start, place.start + stop)
    message = f"checksum of data[{start}:{stop}] differs; fetch the object again, or quantize anew"
    raise CorruptWeights(message, layer=block.layer_name, uri=url, byte_range=where)
