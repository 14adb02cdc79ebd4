"""Rows, columns and ranks' parts equal slices of the whole layer bit for bit, however it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist import TensorParallel, WeightLoader
from arrowquant_dist.errors import CorruptWeights, InvalidConfig
from tests.format.encoder import Row, bf16_bits, kept_row, random_row, write_v2
from tests.target.targets import make_target

MIB = 1 << 20
ROWS, COLUMNS = 11, 37  # odd: no group, byte or rank ends where the others do


def in_blocks(name: str, **kind: Any) -> list[Row]:
    """A layer of ROWS × COLUMNS in three blocks."""
    rng = np.random.default_rng(len(name))
    place = {"layer_shape": [ROWS, COLUMNS], **kind}
    quant_type = place.pop("quant_type")
    return [
        random_row(rng, name, count, COLUMNS, quant_type, row_start=first, **place)
        for first, count in ((0, 4), (4, 1), (5, 6))
    ]


def every_kind() -> list[Row]:
    rng = np.random.default_rng(4)
    rows = [
        row
        for bits in ("int8", "int4", "int3", "int2")
        for group in (0, 5, 8)
        for symmetric in (True, False)
        for row in in_blocks(
            f"{bits}-{group}-{symmetric}", quant_type=bits, group_size=group, symmetric=symmetric
        )
    ]
    rows += in_blocks("tensor", quant_type="int4", per_tensor=True)
    values = rng.standard_normal((ROWS, COLUMNS)).astype("<f4")
    rows.append(kept_row("float32", values, "float32"))
    rows.append(kept_row("fp16", values.astype("<f2").astype("<f4"), "float32", as_fp16=True))
    rows.append(kept_row("bfloat16", bf16_bits(values), "bfloat16"))
    rows.append(kept_row("int64", np.arange(ROWS * COLUMNS, dtype="<i8").reshape(ROWS, COLUMNS), "int64"))
    rows.append(kept_row("float64", values.astype("<f8"), "float64"))
    return rows


NAMES = list(dict.fromkeys(row.name for row in every_kind()))


@pytest.fixture(scope="module", params=["none", "zstd"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_target(tmp_path_factory.mktemp("parts") / "t", [every_kind()], compression=request.param)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def whole(loader: WeightLoader, name: str) -> torch.Tensor:
    """Checked against what the encoder decoded by plain loops, since all parts are compared with it."""
    found: torch.Tensor = loader[name]
    expected = np.concatenate([row.decoded for row in every_kind() if row.name == name])
    if name != "bfloat16":
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    return found


ends = st.one_of(st.none(), st.integers(-COLUMNS - 3, COLUMNS + 3))
slices = st.one_of(st.none(), st.builds(slice, ends, ends))


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_columns_are_a_slice_of_the_layer(target: str, name: str) -> None:
    loader = WeightLoader(target)
    layer = whole(loader, name)

    @settings(max_examples=25)
    @given(rows=slices, columns=slices)
    def check(rows: slice | None, columns: slice | None) -> None:
        part = loader.read(name, rows, columns)
        expected = layer[rows or slice(None), columns or slice(None)]
        assert part.shape == expected.shape
        assert bits(part) == bits(expected)

    check()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_columns_are_rounded_to_another_dtype_as_the_layer_is(target: str, dtype: str) -> None:
    loader = WeightLoader(target, dtype=dtype)
    for name in NAMES:
        part = loader.read(name, columns=slice(3, 30))
        assert bits(part) == bits(loader[name][:, 3:30]), name


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 16, 40])
def test_ranks_parts_are_torchs_tensor_split(target: str, size: int, dim: int) -> None:
    loader = WeightLoader(target)
    for name in NAMES:
        expected = torch.tensor_split(loader[name], size, dim)
        for rank in range(size):
            part = loader.read(name, parallel=TensorParallel(rank, size, dim))
            assert part.shape == expected[rank].shape
            assert bits(part) == bits(expected[rank])


def begins_with_a_group(name: str, cut: TensorParallel) -> bool:
    """All groups here have 8 columns or fewer, so none of them is cut into smaller ones."""
    group = int(name.split("-")[1]) if name.startswith("int") and "-" in name else 0
    return group == 0 or cut.span(range(COLUMNS)).start % group == 0


@pytest.mark.parametrize("dim", [0, 1])
def test_codes_are_cut_too(target: str, dim: int) -> None:
    """Groups of 8 and of 5: at sizes that do not divide, ranks begin within a group."""
    loader = WeightLoader(target, dequantize=False)
    decoded = WeightLoader(target)
    for name in NAMES:
        for size in (2, 3, 4):
            for rank in range(size):
                split = torch.tensor_split(decoded[name], size, dim)[rank]
                cut = TensorParallel(rank, size, dim)
                if dim == 1 and not begins_with_a_group(name, cut):
                    with pytest.raises(InvalidConfig, match="is not a multiple of the group size") as caught:
                        loader.read(name, parallel=cut)
                    assert caught.value.layer == name
                    continue
                part = loader.read(name, parallel=cut)
                assert part.shape == tuple(split.shape)
                assert part.values().tobytes() == bits(split), (name, size, rank)


def test_columns_within_a_group_get_smaller_groups_of_the_same_values(tmp_path: Path) -> None:
    rows = [random_row(np.random.default_rng(0), "w", 3, 96, "int3", group_size=32, symmetric=False)]
    path = write_v2(tmp_path / "w.parquet", rows)
    loader, decoded = WeightLoader(path, dequantize=False), WeightLoader(path)["w"]
    for start, group in ((32, 32), (48, 16), (24, 8), (0, 32)):
        part = loader.read("w", columns=slice(start, 90))
        assert part.group_size == group
        assert part.values().tobytes() == bits(decoded[:, start:90])
    with pytest.raises(InvalidConfig, match="cannot start at 4: it is not a multiple of the group size 32"):
        loader.read("w", columns=slice(4, 90))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dequantize", [True, False])
def test_fused_experts_are_cut_along_each_of_their_dimensions(
    tmp_path: Path,
    dim: int,
    dequantize: bool,  # noqa: FBT001 - a case, no switch
) -> None:
    """[experts, out, in] in blocks that end within an expert."""
    rng = np.random.default_rng(1)
    place: dict[str, Any] = {"group_size": 8, "layer_shape": [3, 5, 24], "row_dims": 2}
    rows = [
        random_row(rng, "w", n, 24, "int4", row_start=first, **place)
        for first, n in ((0, 4), (4, 9), (13, 2))
    ]
    path = write_v2(tmp_path / "w.parquet", rows)
    decoded = WeightLoader(path)["w"]
    loader = WeightLoader(path, dequantize=dequantize)
    for rank in range(3):
        part = loader.read("w", parallel=TensorParallel(rank, 3, dim))
        expected = torch.tensor_split(decoded, 3, dim)[rank]
        values = part if dequantize else torch.from_numpy(part.values())
        assert values.shape == expected.shape == part.shape
        assert bits(values) == bits(expected)
    if dequantize:
        assert bits(loader.read("w", slice(1, 3), slice(2, 4))) == bits(decoded[1:3, 2:4])


def test_a_layer_without_the_dimension_is_whole_on_each_rank(tmp_path: Path) -> None:
    rows = [
        kept_row("bias", np.arange(6, dtype="<f4"), "float32"),
        kept_row("scalar", np.array(2.0, "<f4"), "float32"),
    ]
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", rows))
    assert loader.read("bias", parallel=TensorParallel(1, 2, 1)).tolist() == [0, 1, 2, 3, 4, 5]
    assert loader.read("bias", parallel=TensorParallel(1, 2, 0)).tolist() == [3, 4, 5]
    assert loader.read("scalar", parallel=TensorParallel(1, 2, 0)).item() == 2.0


def test_a_function_says_how_each_layer_is_cut(target: str) -> None:
    cuts = {"float32": TensorParallel(1, 4, 0), "bfloat16": TensorParallel(1, 4, 1)}
    loader = WeightLoader(target)
    found = dict(loader.stream(["float32", "bfloat16", "int64"], parallel=cuts.get))
    assert bits(found["float32"]) == bits(torch.tensor_split(loader["float32"], 4, 0)[1])
    assert bits(found["bfloat16"]) == bits(torch.tensor_split(loader["bfloat16"], 4, 1)[1])
    assert bits(found["int64"]) == bits(loader["int64"])


def test_a_rank_of_rows_and_columns_is_cut_from_these(target: str) -> None:
    loader = WeightLoader(target)
    part = loader.read("int4-5-False", slice(1, 10), slice(4, 31), parallel=TensorParallel(2, 3, 1))
    assert bits(part) == bits(torch.tensor_split(loader["int4-5-False"][1:10, 4:31], 3, 1)[2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 4, "size": 4}, "rank: must be .*3"),
        ({"rank": -1, "size": 4}, "rank"),
        ({"rank": 0, "size": 0}, "size"),
        ({"rank": 0, "size": 2, "dim": -1}, "dim"),
        ({"rank": 0.0, "size": 2}, "rank: must be a whole number"),
        ({"rank": True, "size": 2}, "rank: must be a whole number"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        TensorParallel(**given)


@pytest.mark.parametrize("given", [(0, 4), "0/4", 3])
def test_what_is_no_part_is_refused(target: str, given: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"TensorParallel\(rank, size, dim\)"):
        WeightLoader(target).read("float32", parallel=given)
    with pytest.raises(InvalidConfig, match=r"return TensorParallel\(rank, size, dim\), or None"):
        WeightLoader(target).read("float32", parallel=lambda _: given)


def test_what_cannot_be_cut_says_why(tmp_path: Path) -> None:
    rows = [
        kept_row("conv", np.zeros((2, 3, 4), "<f4"), "float32"),
        kept_row("b", np.zeros(2, "<f4"), "float32"),
    ]
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", rows))
    with pytest.raises(InvalidConfig, match=r"dimension 2 of .* only the first 2"):
        loader.read("conv", parallel=TensorParallel(0, 2, 2))
    with pytest.raises(InvalidConfig, match="has no columns; read it whole"):
        loader.read("b", columns=slice(0, 1))
    with pytest.raises(
        InvalidConfig, match=r"columns is the number 3; pass a slice .*columns=slice\(0, 1024\)"
    ):
        loader.read("conv", columns=3)  # type: ignore[arg-type]


def test_a_flipped_bit_is_found_in_what_is_read_of_a_layer(tmp_path: Path) -> None:
    """Of each part that has it, and of none that has not: the ranks' bytes are a whole chunk apart."""
    rows = [kept_row("w", np.zeros((4 * MIB // 1024, 256), "<f4"), "float32")]
    root = tmp_path / "t"
    make_target(root, [rows], compression="none")
    [part] = root.glob("weights/*/*.parquet")
    data = bytearray(part.read_bytes())
    at = data.index(bytes(3 * MIB)) + int(2.5 * MIB)  # in the third chunk
    data[at] ^= 1
    part.write_bytes(data)
    loader = WeightLoader(str(root))
    for rank in (0, 1, 3):
        assert not loader.read("w", parallel=TensorParallel(rank, 4, 0)).any()
    reads = (
        lambda: loader.read("w", parallel=TensorParallel(2, 4, 0)),
        lambda: loader.read("w", columns=slice(0, 1)),
        lambda: loader.read_into("w", torch.empty(4 * MIB // 1024, 256)),
        lambda: list(loader.stream("w", order="arrival")),
    )
    for read in reads:
        with pytest.raises(CorruptWeights) as caught:
            read()
        assert caught.value.layer == "w"
        assert caught.value.byte_range is not None
