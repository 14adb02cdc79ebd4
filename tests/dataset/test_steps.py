"""Blocks read in steps, and small blocks read together, have the same values and take less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.errors import CorruptWeights, StorageError
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.local import LocalStore
from tests.format.encoder import Row, kept_row, quantized_row
from tests.target.targets import make_target

MIB = 1 << 20


@pytest.fixture(params=["machine code", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What reads chunks that go straight to where they belong."""
    if request.param == "python":
        monkeypatch.setattr(LocalStore, "read_chunks_into", Store.read_chunks_into)
    return str(request.param)


@pytest.fixture
def reads(way: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each read of a part."""
    sizes: list[int] = []
    plain, plain_chunks = LocalStore.read_pieces_into, LocalStore.read_chunks_into

    def read_pieces_into(
        store: LocalStore, path: str, start: int, out: np.ndarray, piece_nbytes: int, seen: Any
    ) -> None:
        sizes.extend(min(piece_nbytes, out.size - at) for at in range(0, out.size, piece_nbytes))
        plain(store, path, start, out, piece_nbytes, seen)

    def read_chunks_into(
        store: LocalStore, path: str, start: int, out: np.ndarray, digests: bytes, nbytes: int
    ) -> int:
        done = plain_chunks(store, path, start, out, digests, nbytes)
        assert done in ((0,) if way == "python" or out.size < 4 * MIB else (out.size,))
        sizes.extend(min(nbytes, done - at) for at in range(0, done, nbytes))
        return done

    monkeypatch.setattr(LocalStore, "read_pieces_into", read_pieces_into)
    monkeypatch.setattr(LocalStore, "read_chunks_into", read_chunks_into)
    return sizes


def wide_row(rows: int, columns: int, **more: Any) -> Row:
    """int4 codes in groups of 64, decoded by numpy at once."""
    rng = np.random.default_rng(rows)
    codes = rng.integers(-8, 8, (rows, columns))
    scales = rng.uniform(0.5, 2.0, (rows, -(-columns // 64))).astype("<f4")
    small = quantized_row("w", codes[:1, :2], scales[:1, :1], None, quant_type="int4", group_size=64)
    u = (codes + 8).astype(np.uint8)
    if columns % 2:
        u = np.pad(u, ((0, 0), (0, 1)))
    data = (u[:, ::2] | u[:, 1::2] << 4).tobytes()
    decoded = codes.astype("<f4") * np.repeat(scales, 64, axis=1)[:, :columns]
    values = {"shape": [rows, columns], "layer_shape": [rows, columns], "num_params": rows * columns}
    from tests.format.encoder import signed

    return Row(signed({**small.columns, **values, "data": data, "scales": scales.tobytes(), **more}), decoded)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(3000, 1001), (2, 5 * MIB), (1, 3 * MIB), (4096, 1024), (7, 700_001)],
)
@pytest.mark.parametrize("verify", [True, False])
def test_rows_that_end_anywhere_within_chunks_are_decoded(
    tmp_path: Path, rows: int, columns: int, verify: Any
) -> None:
    row = wide_row(rows, columns)
    dataset = Dataset.open(make_target(tmp_path / "t", [[row]], compression="none"))
    [block] = dataset.layer("w").blocks
    for first, stop in {(0, rows), (rows // 3, rows), (0, -(-rows // 2)), (rows - 1, rows)}:
        out = np.empty((stop - first, columns), "<f4")
        dataset.values_into(
            Piece(block, first, stop), out.reshape(-1).view(np.uint8), "float32", verify=verify
        )
        assert np.array_equal(out, row.decoded[first:stop])


def test_a_block_takes_a_steps_memory_and_not_its_own(tmp_path: Path, reads: list[int]) -> None:
    row = wide_row(16_384, 1024)
    dataset = Dataset.open(make_target(tmp_path / "t", [[row]], compression="none"))
    [block] = dataset.layer("w").blocks
    piece = Piece(block, 0, 16_384)
    reads.clear()
    dataset.values_into(piece, np.empty(4 * 16_384 * 1024, np.uint8), "float32")
    assert max(reads) <= 2 * MIB
    assert dataset.values_into_nbytes(piece) < 4 * MIB < dataset.piece_nbytes(piece)


def test_raw_values_are_read_straight_to_where_they_belong(tmp_path: Path, reads: list[int]) -> None:
    values = np.random.default_rng(0).standard_normal((4096, 250)).astype("<f4")
    loader = WeightLoader(
        make_target(tmp_path / "t", [[kept_row("w", values, "float32")]], compression="none")
    )
    for first, stop in ((0, 4096), (1111, 3333), (0, 1500)):
        assert loader.read("w", rows=slice(first, stop)).numpy().tobytes() == values[first:stop].tobytes()
    reads.clear()
    loader["w"]
    assert sorted(reads)[-3:] == [MIB] * 3  # by chunks


@pytest.mark.parametrize("chunk", [0, 2, 3])
@pytest.mark.usefixtures("way")
def test_no_row_of_a_damaged_chunk_is_decoded(tmp_path: Path, chunk: int) -> None:
    row = kept_row("w", np.ones((4 * MIB // 1024, 256), "<f4"), "float32")
    make_target(tmp_path / "t", [[row]], compression="none")
    [part] = (tmp_path / "t").glob("weights/*/*.parquet")
    data = bytearray(part.read_bytes())
    data[data.index(row.columns["data"][:4096]) + chunk * MIB + 5] ^= 4
    part.write_bytes(data)
    dataset = Dataset.open(str(tmp_path / "t"))
    [block] = dataset.layer("w").blocks
    for dtype in ("float32", "float16"):  # straight, and by steps
        out = np.zeros((4096, 256), {"float32": "<f4", "float16": "<f2"}[dtype])
        with pytest.raises(CorruptWeights) as caught:
            dataset.values_into(Piece(block, 0, 4096), out.reshape(-1).view(np.uint8), dtype)
        assert caught.value.layer == "w"
        first = block.ranges.data.offset + chunk * MIB if block.ranges else 0
        assert caught.value.byte_range == (first, first + MIB)
        if dtype == "float16":
            assert (out[: chunk * 1024] == 1).all()
            assert not out[chunk * 1024 :].any()


def small_rows(count: int) -> list[Row]:
    return [kept_row(f"l{i:03}", np.full((8, 16), i, "<f4"), "float32") for i in range(count)]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_small_layers_are_read_together(tmp_path: Path, compression: str, reads: list[int]) -> None:
    path = make_target(tmp_path / "t", [small_rows(100)], compression=compression)
    loader = WeightLoader(path, workers=1)
    reads.clear()
    found = dict(iter(loader))
    assert [float(tensor[0, 0]) for tensor in found.values()] == list(range(100))
    assert len(reads) <= 2
    assert all(tensor.untyped_storage().nbytes() == 8 * 16 * 4 for tensor in found.values())


@pytest.mark.parametrize("repeats_reads", [False, True])
def test_layers_that_cannot_be_read_together_are_read_alone_unless_the_store_has_tried_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeats_reads: Any
) -> None:
    rows = [kept_row(f"l{i:03}", np.full((64, 64), i, "<f4"), "float32") for i in range(20)]
    loader = WeightLoader(make_target(tmp_path / "t", [rows], compression="none"), workers=1)
    plain = LocalStore.read_into

    def read_into(store: LocalStore, path: str, start: int, out: np.ndarray) -> None:
        if out.size > 4 * 64 * 64 * 4:  # more than four layers
            raise StorageError("it cannot be read at once", uri=store.url(path))
        plain(store, path, start, out)

    monkeypatch.setattr(LocalStore, "repeats_reads", repeats_reads)
    monkeypatch.setattr(LocalStore, "read_into", read_into)
    if repeats_reads:
        with pytest.raises(StorageError, match="cannot be read at once"):
            next(iter(loader))
    else:
        assert [float(tensor[0, 0]) for _, tensor in loader] == list(range(20))


def test_damage_among_layers_that_are_read_together_is_raised_in_its_turn(tmp_path: Path) -> None:
    rows = small_rows(20)
    make_target(tmp_path / "t", [rows], compression="none")
    [part] = (tmp_path / "t").glob("weights/*/*.parquet")
    data = bytearray(part.read_bytes())
    data[data.index(rows[7].columns["data"]) + 3] ^= 1
    part.write_bytes(data)
    seen: list[str] = []
    with pytest.raises(CorruptWeights) as caught:
        seen.extend(name for name, _ in WeightLoader(tmp_path / "t"))
    assert seen == [f"l{i:03}" for i in range(7)]
    assert caught.value.layer == "l007"


def test_reading_together_stays_within_the_budget(tmp_path: Path) -> None:
    path = make_target(tmp_path / "t", [small_rows(100)], compression="none")
    for budget in (8 * 16 * 4 * 3 + 20_000, 60_000, 200_000):
        loader = WeightLoader(path, memory_budget=budget)
        assert len(dict(iter(loader))) == 100
        assert loader.stats.peak_nbytes <= budget


def test_one_large_block_is_shared_among_lanes(tmp_path: Path) -> None:
    """At rows that are no multiple of a chunk, so that lanes meet within one."""
    row = wide_row(40_000, 1001)
    loader = WeightLoader(make_target(tmp_path / "t", [[row]], compression="none"), workers=3)
    assert np.array_equal(loader["w"].numpy(), row.decoded)
    assert np.array_equal(loader.read("w", rows=slice(777, 39_001)).numpy(), row.decoded[777:39_001])


def test_lanes_that_share_a_block_read_no_chunk_twice_where_rows_end_with_chunks(
    tmp_path: Path, reads: list[int]
) -> None:
    values = np.arange(100_000 * 64, dtype="<f4").reshape(-1, 64)  # 26 MB, 4096 rows a chunk
    target = make_target(tmp_path / "t", [[kept_row("w", values, "float32")]], compression="none")
    loader = WeightLoader(target, workers=3)
    assert np.array_equal(loader["w"].numpy(), values)
    chunks = -(-values.nbytes // MIB)
    assert sum(nbytes > 1000 for nbytes in reads) == chunks
    assert sum(nbytes for nbytes in reads if nbytes > 1000) == values.nbytes
    assert sum(nbytes <= 1000 for nbytes in reads) == 3  # each lane reads the digests
    assert np.array_equal(loader.read("w", rows=slice(5000, 97_001)).numpy(), values[5000:97_001])
