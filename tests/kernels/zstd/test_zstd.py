"""zstd itself reads the frames of our blocks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.kernels.zstd import frames
from arrowquant_dist.kernels.zstd.frames import (
    BLOCK_NBYTES,
    Workspace,
    block_count,
    blocks_bound,
    write_blocks,
)
from tests.kernels.weights import codes, numerics

START = bytes.fromhex("28b52ffd8038")  # magic; a size in four bytes follows the window of 128 KiB
END = bytes.fromhex("010000")  # the last block, empty
CODEC = pa.Codec("zstd", compression_level=1)
GUARD = 64


def blocks_of(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The blocks and their sizes; nothing was written where it must not be."""
    out = np.full(blocks_bound(values.size) + 2 * GUARD, 165, np.uint8)
    sizes = np.full(block_count(values.size), -1, np.int64)
    end = write_blocks(values, out, GUARD, sizes, Workspace())
    assert (out[:GUARD] == 165).all()
    assert (out[-GUARD:] == 165).all()
    return out[GUARD:end].tobytes(), sizes


def read(blocks: bytes, nbytes: int) -> np.ndarray:
    frame = START + nbytes.to_bytes(4, "little") + blocks + END
    return np.frombuffer(CODEC.decompress(frame, nbytes), np.uint8)


def mixed(nbytes: int, likely: list[float], seed: int) -> np.ndarray:
    """Bytes of which some are rare: their logarithms are drawn."""
    weights = np.exp(np.resize(likely, 256))
    return np.random.default_rng(seed).choice(256, nbytes, p=weights / weights.sum()).astype(np.uint8)


SIZES = st.one_of(
    st.integers(0, 600),
    st.integers(0, 3 * BLOCK_NBYTES),
    st.integers(-17, 17).map(lambda n: 2 * BLOCK_NBYTES + n),
)
SEEDS = st.integers(0, 1 << 30)


@numerics
@given(SIZES, st.lists(st.floats(-9, 9), min_size=1, max_size=256), SEEDS)
def test_zstd_reads_any_bytes_back(nbytes: int, likely: list[float], seed: int) -> None:
    values = mixed(nbytes, likely, seed)
    blocks, sizes = blocks_of(values)
    assert np.array_equal(read(blocks, nbytes), values)
    assert sizes.sum() == len(blocks)


@numerics
@given(st.lists(st.floats(0, 24), min_size=256, max_size=256), SEEDS)
def test_codes_of_all_lengths_are_described(exponents: list[float], seed: int) -> None:
    values = np.repeat(np.arange(256, dtype=np.uint8), [int(2 ** (x / 2)) for x in exponents])
    np.random.default_rng(seed).shuffle(values)
    blocks, _ = blocks_of(values)
    assert np.array_equal(read(blocks, values.size), values)


@numerics
@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 5), SEEDS)
def test_bytes_that_the_sample_did_not_meet_are_written(few: int, more: int, chunks: int, seed: int) -> None:
    """The middle of a long run, of which 256 bytes at a time are looked at."""
    values = codes(chunks * BLOCK_NBYTES, 3, seed)
    values[values.size // 2 : values.size // 2 + few * more] = np.arange(few * more)
    blocks, _ = blocks_of(values)
    assert np.array_equal(read(blocks, values.size), values)


@numerics
@given(
    st.sets(st.integers(0, 255), min_size=1, max_size=40),
    st.integers(16, 3 * BLOCK_NBYTES),
    st.floats(0.01, 0.9),
    SEEDS,
)
def test_bytes_of_which_few_occur_are_read_back(few: set[int], nbytes: int, share: float, seed: int) -> None:
    """Other bytes have no code; how often one of them comes falls from one to the next."""
    likely = (1 - share) ** np.arange(len(few))
    random = np.random.default_rng(seed)
    values = random.choice(np.array([*few], np.uint8), nbytes, p=likely / likely.sum())
    blocks, _ = blocks_of(values)
    assert np.array_equal(read(blocks, nbytes), values)


@pytest.mark.parametrize(("spread", "of_zstd"), [(1.5, 0.95), (3.0, 1.01), (6.0, 1.01)])
def test_where_few_bytes_occur_the_code_is_nearly_as_short_as_can_be(spread: float, of_zstd: float) -> None:
    values = codes(3_000_001, spread)
    share = np.bincount(values, minlength=256) / values.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum()
    blocks, _ = blocks_of(values)
    assert len(blocks) * 8 / values.size < entropy + 0.07
    assert len(blocks) < of_zstd * CODEC.compress(values).size


@pytest.mark.parametrize("spread", [24, 32, 64])
def test_codes_of_weights_take_no_more_than_zstd_and_a_hundredth(spread: float) -> None:
    values = codes(17_000_003, spread)
    values[::4096] = 127  # each row's largest
    blocks, _ = blocks_of(values)
    assert len(blocks) < 1.01 * CODEC.compress(values).size
    assert np.array_equal(read(blocks, values.size), values)


def test_a_segment_has_the_code_that_suits_it() -> None:
    values = np.concatenate([codes(64 * BLOCK_NBYTES, spread) for spread in (24, 60)])
    blocks, sizes = blocks_of(values)
    assert len(blocks) < 1.01 * CODEC.compress(values).size
    assert sizes[:64].mean() < 0.9 * sizes[64:].mean()


def test_what_cannot_be_compressed_is_stored() -> None:
    values = np.random.default_rng(0).integers(0, 256, 3 * BLOCK_NBYTES + 5).astype(np.uint8)
    blocks, sizes = blocks_of(values)
    assert sizes.tolist() == [BLOCK_NBYTES + 3] * 3 + [5 + 3]
    assert blocks[3 : 3 + BLOCK_NBYTES] == values[:BLOCK_NBYTES].tobytes()


def test_a_block_that_does_not_suit_the_segments_code_is_stored() -> None:
    values = codes(8 * BLOCK_NBYTES, 3)
    values[3 * BLOCK_NBYTES : 4 * BLOCK_NBYTES] = np.random.default_rng(0).integers(0, 256, BLOCK_NBYTES)
    blocks, sizes = blocks_of(values)
    assert sizes[3] == BLOCK_NBYTES + 3
    assert sizes[[2, 4]].max() < 0.6 * BLOCK_NBYTES
    assert np.array_equal(read(blocks, values.size), values)


def test_the_same_values_give_the_same_bytes_always() -> None:
    values = np.resize((np.arange(5000) * 2654435761 >> 7) % 61 * ((np.arange(5000) % 7) + 1) % 256, 200_000)
    blocks, _ = blocks_of(values.astype(np.uint8))
    assert xxhash.xxh3_64_hexdigest(blocks) == "2e285f8f61074dd5"


def test_blocks_that_are_unlike_have_codes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an embedding whose rows have finer steps at one end than at the other."""
    values = np.concatenate([codes(BLOCK_NBYTES, spread) for spread in (24.0, 8.0, 3.0, 1.2)])
    blocks, sizes = blocks_of(values)
    assert np.array_equal(read(blocks, values.size), values)
    assert [int(blocks_of(block)[1][0]) for block in np.split(values, 4)] == sizes.tolist()
    monkeypatch.setattr(frames, "_UNLIKE", 1)
    assert len(blocks) < 0.9 * len(blocks_of(values)[0])


def test_blocks_that_are_alike_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = codes(8 * BLOCK_NBYTES + 999, 3.0)
    found = blocks_of(values)[0]
    monkeypatch.setattr(frames, "_UNLIKE", 1)
    assert blocks_of(values)[0] == found
    monkeypatch.setattr(frames, "_UNLIKE", -1)
    assert blocks_of(values)[0] != found


def test_what_codes_would_take_is_the_same_number_on_every_machine() -> None:
    """It decides whether blocks share one, so a last digit of another CPU's logarithm would be other bytes."""
    counts = np.arange(1 << 17)
    found = frames._n_log_n(counts)
    exact = counts * np.log(np.maximum(counts, 1)) * frames._NAT
    assert np.abs(found - exact).max() < 0.51  # part of 2^-20 nat
    assert xxhash.xxh3_64_hexdigest(found.astype("<i8").tobytes()) == "f1b6471c54475fe8"
