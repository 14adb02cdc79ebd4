"""Values as zstd frames: readable by any reader, and no larger than zstd's own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.format import compression
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.kernels.zstd import frames as kernel_frames
from arrowquant_dist.kernels.zstd.frames import BLOCK_NBYTES
from tests.kernels.weights import codes
from tests.logged import Logged

CODEC = pa.Codec("zstd", compression_level=1)
PREFIX = b"\x01\x02\x03\x04"
LARGE = 1 << 18


def compressed(value: np.ndarray, frames: ZstdFrames | None = None) -> bytes:
    return bytes((frames or ZstdFrames()).compress(PREFIX, value.data.cast("B")))


def read(frame: bytes, nbytes: int) -> bytes:
    return CODEC.decompress(frame, nbytes, asbytes=True)  # type: ignore[no-any-return]


@settings(max_examples=60)
@given(
    nbytes=st.one_of(st.integers(1, 4000), st.integers(LARGE - 9, LARGE + 9), st.integers(LARGE, 9 * LARGE)),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0, 300.0]),
    offset=st.integers(0, 3),
)
def test_any_value_is_read_back_behind_its_prefix(nbytes: int, spread: float, offset: int) -> None:
    value = codes(nbytes + offset, spread)[offset:]
    assert read(compressed(value), 4 + nbytes) == PREFIX + value.tobytes()


def zeros(nbytes: int) -> np.ndarray:
    return np.zeros(nbytes, np.uint8)


def copies(nbytes: int) -> np.ndarray:
    return np.resize(codes(5000, 30), nbytes)


def few(nbytes: int) -> np.ndarray:
    return codes(nbytes, 1.5)


def half_zeros(nbytes: int) -> np.ndarray:
    return np.concatenate([zeros(nbytes // 2), codes(nbytes // 2, 30)])


def usual(nbytes: int) -> np.ndarray:
    return codes(nbytes, 30)


@pytest.mark.parametrize("make", [zeros, copies, few, half_zeros, usual])
@pytest.mark.parametrize("nbytes", [1000, LARGE, 5_000_000, 40_000_000])
def test_a_frame_is_not_much_larger_than_zstds(make: object, nbytes: int) -> None:
    value = make(nbytes)  # type: ignore[operator]
    frame = compressed(value)
    assert len(frame) < 1.02 * CODEC.compress(value).size + 100
    assert read(frame, 4 + nbytes) == PREFIX + value.tobytes()


def test_frames_of_one_maker_follow_each_other_in_any_order() -> None:
    frames = ZstdFrames()
    for value in (
        usual(3 * LARGE),
        zeros(9 * LARGE),
        usual(10),
        usual(LARGE),
        copies(2 * LARGE),
        usual(8 * LARGE),
    ):
        assert read(compressed(value, frames), 4 + value.size) == PREFIX + value.tobytes()


def test_a_frame_of_ours_says_its_size_and_needs_a_small_window() -> None:
    frame = compressed(usual(4 * LARGE))
    assert frame[:6] == bytes.fromhex("28b52ffd8038")
    assert int.from_bytes(frame[6:10], "little") == 4 + 4 * LARGE
    assert 1 << (10 + (frame[5] >> 3)) == BLOCK_NBYTES


def test_the_kernel_is_compiled_for_one_type_of_value() -> None:
    frames = ZstdFrames()
    frames.load()
    before = len(kernel_frames._write_segment.signatures)
    compressed(usual(LARGE), frames)
    frames.compress(PREFIX, memoryview(usual(LARGE).tobytes()))
    assert len(kernel_frames._write_segment.signatures) == before


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has compressed nothing yet."""
    monkeypatch.setattr(compression, "_KERNEL", compression._KernelCheck())


def with_wrong_byte(at: Callable[[int, int], int]) -> Callable[..., int]:
    """The kernel, with one bit of what it writes turned over. at: of the first byte and the end of it, to a byte."""

    def write(values: np.ndarray, out: np.ndarray, start: int, *more: Any) -> int:
        end = kernel_frames.write_blocks(values, out, start, *more)
        out[at(start, end)] ^= 1
        return end

    return write


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "at",
    [lambda start, _end: start, lambda start, _end: start + 5000, lambda _start, end: end - 2],
    ids=["header", "first block", "last block"],
)
@pytest.mark.parametrize("is_loaded", [True, False])
def test_frames_are_zstds_where_the_kernel_writes_a_wrong_byte(
    monkeypatch: pytest.MonkeyPatch,
    logged: Logged,
    at: Callable[[int, int], int],
    is_loaded: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Nobody else would notice: a part's checksums are made of what was to be compressed."""
    monkeypatch.setattr(compression, "write_blocks", with_wrong_byte(at))
    value = usual(3 * LARGE)
    with logged.at_level(logging.INFO):
        frames = ZstdFrames()
        if is_loaded:
            frames.load()
        for _ in range(2):
            assert read(compressed(value, frames), 4 + value.size) == PREFIX + value.tobytes()
        assert read(compressed(value), 4 + value.size) == PREFIX + value.tobytes()
    assert [record.message for record in logged.records] == [
        "the zstd kernel writes wrong frames on this machine: pyarrow compresses instead"
    ]


@pytest.mark.usefixtures("fresh")
def test_a_kernel_that_writes_what_zstd_reads_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def count(value: np.ndarray) -> bool:
        calls.append(value.size)
        return True

    monkeypatch.setattr(compression, "_is_read_back", count)
    for _ in range(2):
        compressed(usual(LARGE))
    assert len(calls) == len(list(compression._samples()))


def test_the_kernel_is_looked_at_with_values_of_every_kind() -> None:
    """Blocks that are coded, stored, and cut short; from one symbol to all of them."""
    samples = list(compression._samples())
    assert {-(-value.size // BLOCK_NBYTES) for value in samples} == {3}
    assert all(value.size % BLOCK_NBYTES % 16 for value in samples)
    symbols = sorted(len(np.unique(value)) for value in samples)
    assert symbols[0] == 1
    assert symbols[-1] == 256
    sizes = {
        len(compression.ZstdFrames().frame_of_kernel(b"", v, np.empty(3, np.int64))) // 1000 for v in samples
    }
    assert len(sizes) >= 6


def test_a_value_of_unlike_parts_is_predicted_by_some_of_each() -> None:
    """As an embedding's codes, whose rows grow coarser: blocks have codes of their own, and a part of each is known."""
    spreads = np.geomspace(20.0, 1.0, 24)
    values = [codes(1 << 17, spread) for spread in spreads]
    frames = ZstdFrames()
    whole = np.concatenate(values)
    taken = frames.compress(b"abcd", whole.data).nbytes
    sampled = [part[: 1 << 14] for part in values]
    found = frames.predicted_of_parts(b"abcd", sampled, whole.size)
    assert found == pytest.approx(taken, rel=0.01)
    assert found < frames.predicted_nbytes(b"abcd", np.concatenate(sampled).data, whole.size)
