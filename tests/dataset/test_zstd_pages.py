"""Values in zstd pages are what zstd decodes, and are refused if the page belongs to another value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from arrowquant_dist.dataset.zstd_pages import decompressed_page
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.format.record import StoredRange

_MAGIC = b"\x28\xb5\x2f\xfd"


def noise(nbytes: int) -> bytes:
    return np.random.default_rng(nbytes).bytes(nbytes)


def page_of(value: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(len(value).to_bytes(4, "little") + value, asbytes=True))


def read(page: bytes, nbytes: int) -> bytes:
    return decompressed_page(np.frombuffer(page, np.uint8), StoredRange(100, len(page), nbytes)).tobytes()


def stored_frame(content: bytes, *, last: int = 1, kind: int = 0, described: int = 0xA0) -> bytes:
    """A frame of one block. described: a single segment whose size has four bytes."""
    block = (len(content) << 3 | kind << 1 | last).to_bytes(3, "little")
    return _MAGIC + bytes([described]) + len(content).to_bytes(4, "little") + block + content


@pytest.mark.parametrize(
    "nbytes", [1, 16, 32, 251, 252, 300, 1536, 65_531, 65_788, 131_068, 131_069, 300_000]
)
def test_noise_and_text_of_any_size_are_what_was_written(nbytes: int) -> None:
    for value in (noise(nbytes), bytes(nbytes), noise(7) * (nbytes // 7) + b"x" * (nbytes % 7)):
        assert read(page_of(value), nbytes) == value


def test_a_value_that_a_frame_stores_as_it_is_is_a_view_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    page = np.frombuffer(page_of(noise(16)), np.uint8)
    value = decompressed_page(page, StoredRange(0, page.size, 16))
    assert np.shares_memory(page, value)
    assert value.tobytes() == noise(16)


def test_frames_that_only_look_so_are_read_by_zstd_or_refused() -> None:
    content = (16).to_bytes(4, "little") + noise(16)
    assert read(stored_frame(content), 16) == noise(16)
    damaged = [
        stored_frame(content, last=0),  # another block should follow
        stored_frame(content, kind=1),  # a block of one byte over and over, with bytes behind it
        stored_frame(content, kind=3),  # reserved
        stored_frame(content, described=0xA8),  # a reserved bit
        stored_frame(content, described=0xA4),  # a checksum should follow
        stored_frame((17).to_bytes(4, "little") + noise(16)),  # a value of another length
        stored_frame(content)[:-1],
        stored_frame(content) + b"\0",
        b"",
        _MAGIC,
    ]
    for page in damaged:
        with pytest.raises(CorruptWeights) as caught:
            read(page, 16)
        assert caught.value.byte_range == (100, 100 + len(page))
