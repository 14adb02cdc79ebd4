"""A value in a zstd page of a part, as the index says where it is: one frame of its length and its bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from arrowquant_dist.errors import CorruptWeights, counted
from arrowquant_dist.format.record import StoredRange

ZSTD_PREFIX_NBYTES = 4  # a decompressed page begins with the value's length
_LONGEST_HEADER = 18  # of a frame, as the magic, what it describes, window, dictionary and size take at most
_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK_NBYTES, _LEAST_BLOCK_NBYTES = (
    1 << 17,
    4,
)  # what a block of a frame has at most, and what it takes at least
_BLOCK_HEADER_NBYTES = 3
_NOTHING = np.empty(0, np.uint8)


def decompressed_page(page: np.ndarray, value: StoredRange) -> np.ndarray:
    """The value in a page body, uint8: of a frame that stores it as it is a view, else memory of its own.

    Such frames are what digests and other noise become. To be looked through in Python takes them a fifth of the time
    that zstd takes for any frame, and gives no other thread the interpreter meanwhile. Raises CorruptWeights.
    """
    if value.nbytes == 0:
        return _NOTHING
    _check_frame(page, value)
    decoded = _stored_content(page, value.nbytes + ZSTD_PREFIX_NBYTES)
    if decoded is None:
        try:
            plain = pa.Codec("zstd").decompress(pa.py_buffer(page), value.nbytes + ZSTD_PREFIX_NBYTES)
        except (OSError, pa.ArrowException) as error:
            message = f"the page does not decompress ({error}); fetch the object again or quantize anew"
            raise CorruptWeights(message, byte_range=_byte_range(value)) from error
        decoded = np.frombuffer(plain, np.uint8)
    length = int.from_bytes(decoded[:ZSTD_PREFIX_NBYTES].tobytes(), "little")
    if length != value.nbytes or decoded.size != value.nbytes + ZSTD_PREFIX_NBYTES:
        message = f"the page holds {counted(length, 'byte')}, not {value.nbytes}"
        message += "; fetch the object again or quantize anew"
        raise CorruptWeights(message, byte_range=_byte_range(value))
    return decoded[ZSTD_PREFIX_NBYTES:]


def _byte_range(value: StoredRange) -> tuple[int, int]:
    return value.offset, value.offset + value.stored_nbytes


def _check_frame(page: np.ndarray, value: StoredRange) -> None:
    """CorruptWeights for a frame that can't become the value, before memory is taken for it: it says another size, or
    says none and is too short."""
    needed, found = value.nbytes + ZSTD_PREFIX_NBYTES, _content_nbytes(page[:_LONGEST_HEADER].tobytes())
    if found is None and needed <= page.size // _LEAST_BLOCK_NBYTES * _BLOCK_NBYTES:
        return
    if found != needed:
        holds = "too few bytes" if found is None else counted(found, "byte")
        message = f"the page holds {holds}, not {needed}; fetch the object again or quantize anew"
        raise CorruptWeights(message, byte_range=_byte_range(value))


def _content_nbytes(frame: bytes) -> int | None:
    """What the header of a zstd frame says that its content has (RFC 8878, 3.1.1.1); None where it says nothing, or is
    no such header, which is for the decoder to say."""
    if not frame.startswith(_MAGIC) or len(frame) == len(_MAGIC):
        return None
    described = frame[len(_MAGIC)]
    is_single_segment = described >> 5 & 1
    width = (is_single_segment, 2, 4, 8)[described >> 6]
    at = len(_MAGIC) + 1 + (0 if is_single_segment else 1) + (0, 1, 2, 4)[described & 3]
    found = int.from_bytes(frame[at : at + width], "little")
    return (found + 256 if width == 2 else found) if width else None


def _stored_content(page: np.ndarray, nbytes: int) -> np.ndarray | None:
    """The content of a frame of one segment whose one block has its `nbytes` as they are (RFC 8878, 3.1.1.2); None for
    any other, and for what is no frame: those are for the decoder."""
    start = page.size - nbytes
    head = page[: max(start, 0)].tobytes() if start <= _LONGEST_HEADER + _BLOCK_HEADER_NBYTES else b""
    if not head.startswith(_MAGIC) or len(head) <= len(_MAGIC) + _BLOCK_HEADER_NBYTES:
        return None
    described = head[len(_MAGIC)]
    width = (1, 2, 4, 8)[described >> 6]
    has_only_size = (
        described & 0b0011_1111 == 0b0010_0000
    )  # one segment; no checksum, no dictionary, nothing reserved
    last_block = (nbytes << 3 | 1).to_bytes(_BLOCK_HEADER_NBYTES, "little") if nbytes < _BLOCK_NBYTES else b""
    is_stored = has_only_size and len(head) == len(_MAGIC) + 1 + width + len(last_block)
    return page[start:] if last_block and is_stored and head.endswith(last_block) else None
