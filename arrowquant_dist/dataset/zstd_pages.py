"""Decompresses a value from a zstd page of a part: one frame that holds the value's length and its bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from arrowquant_dist.errors import CorruptWeights, counted
from arrowquant_dist.format.record import StoredRange

ZSTD_PREFIX_NBYTES = 4  # a decompressed page begins with the value's length
_LONGEST_HEADER = 18  # of a frame: magic, descriptor, window, dictionary and content size
_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK_NBYTES, _LEAST_BLOCK_NBYTES = (
    1 << 17,
    4,
)  # the most content that a block of a frame has, and the fewest bytes that it takes
_BLOCK_HEADER_NBYTES = 3
_NOTHING = np.empty(0, np.uint8)


def decompressed_page(page: np.ndarray, value: StoredRange) -> np.ndarray:
    """The value in a page body, uint8: a view if the frame stores it uncompressed, else in new memory.

    Digests and other noise are stored uncompressed. Parsing such a frame in Python takes a fifth of the time that zstd
    takes for any frame, and does not give the interpreter to another thread in the meantime. Raises CorruptWeights.
    """
    if value.nbytes == 0:
        return _NOTHING
    _check_frame(page, value)
    decoded = _stored_content(page, value.nbytes + ZSTD_PREFIX_NBYTES)
    if decoded is None:
        try:
            plain = pa.Codec("zstd").decompress(pa.py_buffer(page), value.nbytes + ZSTD_PREFIX_NBYTES)
        except (OSError, pa.ArrowException) as error:
            message = f"the page does not decompress ({error}); fetch the object again or quantize again"
            raise CorruptWeights(message, byte_range=_byte_range(value)) from error
        decoded = np.frombuffer(plain, np.uint8)
    length = int.from_bytes(decoded[:ZSTD_PREFIX_NBYTES].tobytes(), "little")
    if length != value.nbytes or decoded.size != value.nbytes + ZSTD_PREFIX_NBYTES:
        message = f"the page holds {counted(length, 'byte')}, not {value.nbytes}"
        message += "; fetch the object again or quantize again"
        raise CorruptWeights(message, byte_range=_byte_range(value))
    return decoded[ZSTD_PREFIX_NBYTES:]


def _byte_range(value: StoredRange) -> tuple[int, int]:
    return value.offset, value.offset + value.stored_nbytes


def _check_frame(page: np.ndarray, value: StoredRange) -> None:
    """Raises CorruptWeights, before memory is taken for the value, for a frame that cannot decompress to it: one that
    states another size, or states none and is too short."""
    needed, found = value.nbytes + ZSTD_PREFIX_NBYTES, _content_nbytes(page[:_LONGEST_HEADER].tobytes())
    if found is None and needed <= page.size // _LEAST_BLOCK_NBYTES * _BLOCK_NBYTES:
        return
    if found != needed:
        holds = "too few bytes" if found is None else counted(found, "byte")
        message = f"the page holds {holds}, not {needed}; fetch the object again or quantize again"
        raise CorruptWeights(message, byte_range=_byte_range(value))


def _content_nbytes(frame: bytes) -> int | None:
    """The content size that the header of a zstd frame states (RFC 8878, 3.1.1.1); None if it states none, or if it is
    not such a header, which the decoder will report."""
    if not frame.startswith(_MAGIC) or len(frame) == len(_MAGIC):
        return None
    described = frame[len(_MAGIC)]
    is_single_segment = described >> 5 & 1
    width = (is_single_segment, 2, 4, 8)[described >> 6]
    at = len(_MAGIC) + 1 + (0 if is_single_segment else 1) + (0, 1, 2, 4)[described & 3]
    found = int.from_bytes(frame[at : at + width], "little")
    return (found + 256 if width == 2 else found) if width else None


def _stored_content(page: np.ndarray, nbytes: int) -> np.ndarray | None:
    """The content of a single-segment frame with a single uncompressed block of `nbytes` (RFC 8878, 3.1.1.2); None for
    other frames, and for anything else, which are left to the decoder."""
    start = page.size - nbytes
    head = page[: max(start, 0)].tobytes() if start <= _LONGEST_HEADER + _BLOCK_HEADER_NBYTES else b""
    if not head.startswith(_MAGIC) or len(head) <= len(_MAGIC) + _BLOCK_HEADER_NBYTES:
        return None
    described = head[len(_MAGIC)]
    width = (1, 2, 4, 8)[described >> 6]
    has_only_size = (
        described & 0b0011_1111 == 0b0010_0000
    )  # single segment; no checksum, no dictionary, no reserved bits
    last_block = (nbytes << 3 | 1).to_bytes(_BLOCK_HEADER_NBYTES, "little") if nbytes < _BLOCK_NBYTES else b""
    is_stored = has_only_size and len(head) == len(_MAGIC) + 1 + width + len(last_block)
    return page[start:] if last_block and is_stored and head.endswith(last_block) else None
