"""Whole layers that are read and decoded together have the same values and the same errors as each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.errors import CorruptWeights, CutObject
from arrowquant_dist.kernels import decode
from arrowquant_dist.loader import WeightLoader
from tests.format.encoder import Row, kept_row, random_row, signed
from tests.target.targets import make_target


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of each call of the kernel."""
    counts: list[int] = []
    plain = decode.decode_blocks

    def counted(codes: Any, scales: Any, zero_points: Any, table: np.ndarray, *rest: Any) -> int:
        counts.append(len(table))
        return int(plain(codes, scales, zero_points, table, *rest))

    monkeypatch.setattr(decode, "decode_blocks", counted)
    return counts


def mixed_rows() -> list[Row]:
    rng = np.random.default_rng(3)
    rows = [kept_row("kept", rng.standard_normal(33).astype("<f4"), "float32")]
    for quant_type in ("int8", "int4", "int3", "int2"):
        for symmetric in (True, False):
            how = {"symmetric": symmetric}
            rows.append(
                random_row(rng, f"{quant_type} {symmetric} groups", 5, 41, quant_type, group_size=8, **how)
            )
            rows.append(random_row(rng, f"{quant_type} {symmetric} channels", 7, 13, quant_type, **how))
            rows.append(
                random_row(rng, f"{quant_type} {symmetric} tensor", 3, 9, quant_type, per_tensor=True, **how)
            )
        rows.append(kept_row(f"after {quant_type}", rng.integers(-9, 9, (2, 3)), "int64"))
    rows.append(kept_row("half", rng.standard_normal((3, 4)).astype("<f4"), "float32", as_fp16=True))
    rows.append(random_row(rng, "empty", 0, 5, "int8"))
    return rows


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_batch_has_the_values_of_its_layers(
    tmp_path: Path, compression: str, dtype: str, verify: Any
) -> None:
    import torch

    rows = mixed_rows()
    path = make_target(tmp_path / "t", [rows], compression=compression)
    found = dict(iter(WeightLoader(path, dtype=dtype, verify=verify)))
    assert list(found) == [row.name for row in rows]
    for row in rows:
        wanted = torch.from_numpy(np.ascontiguousarray(row.decoded))
        if row.decoded.dtype != np.int64:
            wanted = wanted.to(torch.float32).to(getattr(torch, dtype))
        assert torch.allclose(
            found[row.name].double(), wanted.double(), rtol=2e-7 if "64" in dtype else 0, atol=0
        ) or (dtype == "float32" and torch.allclose(found[row.name], wanted, rtol=3e-7, atol=1e-6)), row.name


def test_one_call_decodes_as_many_blocks_as_it_takes(tmp_path: Path, calls: list[int]) -> None:
    rng = np.random.default_rng(5)
    rows = [random_row(rng, f"l{i:02}", 4, 12, "int8") for i in range(20)]
    path = make_target(tmp_path / "t", [rows], compression="none")
    found = dict(iter(WeightLoader(path, workers=1)))
    assert calls == [8, 8, 4]
    for row in rows:
        np.testing.assert_allclose(found[row.name].numpy(), row.decoded, rtol=1e-6)


@pytest.mark.parametrize(("column", "number"), [("scales", "nan"), ("zero_points", "inf")])
@pytest.mark.parametrize("verify", [True, False])
def test_a_number_that_is_not_finite_is_found_in_the_turn_of_its_layer(
    tmp_path: Path, column: str, number: str, verify: Any
) -> None:
    rng = np.random.default_rng(6)
    rows = [random_row(rng, f"l{i:02}", 4, 12, "int8", symmetric=False) for i in range(20)]
    numbers = np.frombuffer(rows[13].columns[column], "<f4").copy()
    numbers[2] = float(number)
    rows[13] = Row(signed({**rows[13].columns, column: numbers.tobytes()}), rows[13].decoded)
    loader = WeightLoader(make_target(tmp_path / "t", [rows], compression="none"), verify=verify)
    seen: list[tuple[str, Any]] = []
    with pytest.raises(CorruptWeights, match=rf"{column}\[2\] is not finite") as caught:
        seen.extend(iter(loader))
    assert caught.value.layer == "l13"
    assert [name for name, _ in seen] == [row.name for row in rows[:13]]
    for (_, tensor), row in zip(seen, rows, strict=False):
        np.testing.assert_allclose(tensor.numpy(), row.decoded, rtol=1e-5, atol=1e-5)


def test_of_two_that_are_wrong_the_first_is_told_of(tmp_path: Path) -> None:
    """One by its checksum, as it is read, and one before it by its scales, as it is decoded."""
    rng = np.random.default_rng(7)
    rows = [random_row(rng, f"l{i}", 4, 12, "int8") for i in range(9)]
    scales = np.frombuffer(rows[2].columns["scales"], "<f4") * np.float32("inf")
    rows[2] = Row(signed({**rows[2].columns, "scales": scales.tobytes()}), rows[2].decoded)
    rows[6] = rows[6].but(data=bytes(48))
    path = make_target(tmp_path / "t", [rows], compression="none")
    seen: list[str] = []
    with pytest.raises(CorruptWeights) as caught:
        seen.extend(name for name, _ in WeightLoader(path))
    assert seen == ["l0", "l1"]
    assert caught.value.layer == "l2"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Layers that were read one by one after all."""
    names: list[str] = []
    own = Dataset.values_into

    def counted(self: Dataset, piece: Piece, *rest: Any, **how: Any) -> None:
        names.append(piece.block.header.layer_name)
        own(self, piece, *rest, **how)

    monkeypatch.setattr(Dataset, "values_into", counted)
    return names


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_layers_of_one_block_are_read_together_whatever_they_are(
    tmp_path: Path, compression: str, dtype: str | None, alone: list[str]
) -> None:
    path = make_target(tmp_path / "t", [mixed_rows()], compression=compression)
    assert len(dict(iter(WeightLoader(path, dtype=dtype)))) == len(mixed_rows())
    assert alone == ["empty"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_what_is_damaged_is_read_again_alone_and_named_in_its_turn(
    tmp_path: Path, compression: str, alone: list[str]
) -> None:
    rng = np.random.default_rng(9)
    rows = [random_row(rng, f"l{i}", 40, 12, "int8") for i in range(5)]
    path = make_target(tmp_path / "t", [rows], compression=compression)
    dataset = Dataset.open(str(path))
    block = dataset.layers["l3"].blocks[0]
    assert block.ranges is not None
    part = tmp_path / "t" / block.path
    damaged = bytearray(part.read_bytes())
    damaged[block.ranges.data.offset + block.ranges.data.stored_nbytes // 2] ^= 0x10
    part.write_bytes(damaged)
    seen: list[str] = []
    with pytest.raises(CorruptWeights) as caught:
        seen.extend(name for name, _ in WeightLoader(path))
    assert caught.value.layer == "l3"
    assert seen == ["l0", "l1", "l2"]
    assert alone == ["l0", "l1", "l2", "l3"]


def test_a_part_that_ends_too_early_is_named_with_the_first_layer_that_needs_its_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    rows = [random_row(rng, f"l{i}", 40, 12, "int8") for i in range(5)]
    path = make_target(tmp_path / "t", [rows], compression="none")
    block = Dataset.open(str(path)).layers["l3"].blocks[0]
    assert block.ranges is not None
    with (tmp_path / "t" / block.path).open("r+b") as part:
        part.truncate(block.ranges.data.offset + 3)
    with pytest.raises(CutObject) as caught:
        dict(iter(WeightLoader(path)))
    assert caught.value.layer == "l0"  # scales of all lie behind the data of all
