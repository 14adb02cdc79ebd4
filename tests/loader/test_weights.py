"""Every layer is given by its name, whole or by rows, as the source had it or as the formula decodes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.errors import InvalidConfig, UnknownLayer
from arrowquant_dist.loader import WeightLoader
from tests.format.encoder import Row, bf16_bits, bf16_values, kept_row, random_row, write_v1, write_v2
from tests.target.targets import make_target

MIB = 1 << 20


def float32_rows(count: int, shape: tuple[int, ...] = (4, 6)) -> list[Row]:
    rng = np.random.default_rng(count)
    return [kept_row(f"layer{i}", rng.standard_normal(shape).astype("<f4"), "float32") for i in range(count)]


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Layers of several dtypes and types, in blocks and whole, and their decoded values."""
    rng = np.random.default_rng(3)
    rows = [
        kept_row("norm", rng.standard_normal(8).astype("<f4"), "float32"),
        random_row(rng, "w8", 5, 12, "int8"),
        random_row(rng, "w2", 6, 10, "int2", group_size=4, symmetric=False),
        random_row(rng, "w4", 3, 7, "int4", group_size=4, layer_shape=[5, 7]),
        random_row(rng, "w4", 2, 7, "int4", group_size=4, layer_shape=[5, 7], row_start=3),
        kept_row("ids", np.arange(6, dtype="<i8").reshape(2, 3), "int64"),
        kept_row("mask", np.array([True, False, True]), "bool"),
        kept_row("scalar", np.array(2.5, "<f8"), "float64"),
        kept_row("half", np.array([[1.5, -2.25]], "<f4"), "float32", as_fp16=True),
    ]
    values: dict[str, np.ndarray] = {}
    for row in rows:
        values[row.name] = (
            np.concatenate([values[row.name], row.decoded]) if row.name in values else row.decoded
        )
    return write_v2(tmp_path / "mixed.parquet", rows), values


def test_every_layer_comes_back_by_name_with_the_dtype_of_the_source(
    mixed: tuple[Path, dict[str, np.ndarray]],
) -> None:
    path, values = mixed
    loader = WeightLoader(str(path))
    assert len(loader) == len(values)
    assert sorted(loader.keys()) == sorted(values)
    dtypes = {"ids": torch.int64, "mask": torch.bool, "scalar": torch.float64}
    for name, expected in values.items():
        assert name in loader
        tensor = loader[name]
        assert tensor.dtype == dtypes.get(name, torch.float32)
        assert tuple(tensor.shape) == expected.shape
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert "nothing" not in loader


@pytest.mark.parametrize("workers", [1, 3])
def test_iterating_gives_each_pair_once_in_storage_order(
    mixed: tuple[Path, dict[str, np.ndarray]], workers: int
) -> None:
    path, values = mixed
    loader = WeightLoader(str(path), workers=workers)
    pairs = list(loader)
    assert [name for name, _ in pairs] == list(values) == loader.keys()
    for name, tensor in pairs:
        np.testing.assert_allclose(tensor.numpy(), values[name], rtol=1e-6, atol=1e-6)


def test_v1_files_are_loaded_too(tmp_path: Path) -> None:
    rows = float32_rows(7)
    loader = WeightLoader(str(write_v1(tmp_path / "v1.parquet", rows)))
    for name, tensor in loader:
        expected = next(row.decoded for row in rows if row.name == name)
        assert tensor.numpy().tobytes() == expected.tobytes() == loader[name].numpy().tobytes()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_bfloat16_comes_back_bit_for_bit(tmp_path: Path, version: str) -> None:
    bits = bf16_bits(np.random.default_rng(5).standard_normal((3, 5)))
    write = write_v1 if version == "v1" else write_v2
    loader = WeightLoader(str(write(tmp_path / "w.parquet", [kept_row("w", bits, "bfloat16")])))
    assert loader["w"].dtype == torch.bfloat16
    assert loader["w"].view(torch.int16).numpy().tobytes() == bits.tobytes()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "uint16", "int8"])
def test_rare_dtypes_come_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    values = np.arange(6, dtype={"uint16": "<u2", "int8": "i1"}.get(dtype, "u1")).reshape(2, 3)
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", [kept_row("w", values, dtype)])))
    assert loader["w"].dtype == getattr(torch, dtype)
    assert loader["w"].view(torch.uint8).numpy().tobytes() == values.tobytes()


def test_quantized_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    row = random_row(np.random.default_rng(2), "w", 4, 9, "int8", dtype="bfloat16")
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", [row])))
    expected = bf16_values(bf16_bits(row.decoded.astype("<f4")))
    assert loader["w"].float().numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, "bfloat16", torch.float64])
def test_another_dtype_is_of_floating_point_layers_alone(
    mixed: tuple[Path, dict[str, np.ndarray]], dtype: torch.dtype | str
) -> None:
    path, _ = mixed
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for name, tensor in WeightLoader(str(path), dtype=dtype):
        assert tensor.dtype == {"ids": torch.int64, "mask": torch.bool}.get(name, wanted)


def test_codes_and_scales_are_given_on_request(mixed: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, values = mixed
    loader = WeightLoader(str(path), dequantize=False)
    for name, tensor in loader:
        assert tensor.shape == values[name].shape
        np.testing.assert_allclose(tensor.values(), values[name], rtol=1e-6, atol=1e-6)
    assert loader["w4"].quant_type == "int4"
    assert loader["w4"].codes.nbytes == 5 * 4
    assert loader["w4"].scales.shape == (5 * 2,)
    np.testing.assert_allclose(
        loader.read("w4", rows=slice(2, 5)).values(), values["w4"][2:5], rtol=1e-6, atol=1e-6
    )


def test_blocks_with_a_scale_each_join_into_one_tensor(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    place: dict[str, Any] = {"per_tensor": True, "layer_shape": [5, 4]}
    rows = [
        random_row(rng, "w", 2, 4, "int4", **place),
        random_row(rng, "w", 3, 4, "int4", row_start=2, **place),
    ]
    [(_, tensor)] = WeightLoader(str(write_v2(tmp_path / "w.parquet", rows)), dequantize=False)
    np.testing.assert_allclose(tensor.values(), np.concatenate([r.decoded for r in rows]), rtol=1e-6)


def test_blocks_of_several_types_join_as_values(tmp_path: Path) -> None:
    """fp16 holds the first block, not the second."""
    place: dict[str, Any] = {"layer_shape": [3, 2]}
    rows = [
        kept_row("w", np.array([[1.0, 2.0]], "<f4"), "float32", as_fp16=True, **place),
        kept_row("w", np.array([[1e9, 2.0], [3.0, 4.0]], "<f4"), "float32", row_start=1, **place),
    ]
    path = write_v2(tmp_path / "w.parquet", rows)
    expected = np.concatenate([row.decoded for row in rows])
    assert WeightLoader(str(path))["w"].numpy().tobytes() == expected.tobytes()
    tensor = WeightLoader(str(path), dequantize=False)["w"]
    assert tensor.quant_type == "none"
    assert tensor.values().tobytes() == expected.tobytes()


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("root", ["disk", "memory://loader/target"])
def test_a_target_gives_every_name_of_the_source(tmp_path: Path, root: str, compression: str) -> None:
    """Tied names come after the stored one, as tensors of their own."""
    rng = np.random.default_rng(6)
    rows = [
        random_row(rng, "embed", 7, 5, "int4", group_size=4, symmetric=False),
        random_row(rng, "w", 2, 6, "int8", layer_shape=[5, 6]),
        kept_row("norm", rng.standard_normal(8).astype("<f4"), "float32"),
        random_row(rng, "w", 3, 6, "int8", layer_shape=[5, 6], row_start=2),
    ]
    uri = str(tmp_path / "target") if root == "disk" else f"{root}-{compression}"
    make_target(uri, [rows[:2], rows[2:]], compression=compression, aliases={"head": "embed", "out": "embed"})
    loader = WeightLoader(uri)
    assert loader.keys() == ["embed", "head", "out", "w", "norm"]
    assert len(loader) == 5
    assert "head" in loader
    seen: dict[str, torch.Tensor] = {}
    for name, tensor in loader:
        seen[name] = tensor.clone()
        tensor.fill_(0)
    assert list(seen) == loader.keys()
    assert torch.equal(seen["head"], seen["embed"])
    assert torch.equal(loader["out"], seen["embed"])
    np.testing.assert_allclose(seen["head"].numpy(), rows[0].decoded, rtol=1e-6)
    np.testing.assert_allclose(
        seen["w"].numpy(), np.concatenate([rows[1].decoded, rows[3].decoded]), rtol=1e-6
    )
    codes = dict(iter(WeightLoader(uri, dequantize=False)))
    assert codes["head"].codes is not codes["embed"].codes
    assert codes["head"].codes.tobytes() == codes["embed"].codes.tobytes()


def test_tied_names_are_read_one_by_one_where_both_would_not_fit(tmp_path: Path) -> None:
    row = random_row(np.random.default_rng(6), "embed", 64, 64, "int8")
    make_target(tmp_path / "t", [[row]], aliases={"head": "embed"})
    loader = WeightLoader(str(tmp_path / "t"), memory_budget=64 * 64 * 7)
    seen = {name: tensor.clone() for name, tensor in loader}
    assert torch.equal(seen["head"], seen["embed"])
    assert loader.stats.peak_nbytes <= 64 * 64 * 7


def test_a_row_is_read_from_a_target_without_the_rest(tmp_path: Path) -> None:
    row = kept_row("w", np.arange(6 * MIB // 4, dtype="<f4").reshape(-1, 256), "float32")
    loader = WeightLoader(make_target(tmp_path / "t", [[row]], compression="none"))
    piece = loader.read("w", rows=slice(3000, 3004))
    assert piece.numpy().tobytes() == row.decoded[3000:3004].tobytes()
    assert loader.stats.nbytes_read < 1.2 * MIB


ends = st.one_of(st.none(), st.integers(-8, 8))


@settings(max_examples=50)
@given(start=ends, stop=ends)
def test_rows_are_sliced_as_python_does(
    tmp_path_factory: pytest.TempPathFactory, start: int | None, stop: int | None
) -> None:
    rng = np.random.default_rng(1)
    rows = [
        random_row(rng, "w", n, 5, "int3", group_size=2, layer_shape=[6, 5], row_start=first)
        for first, n in ((0, 1), (1, 3), (4, 2))
    ]
    loader = WeightLoader(str(write_v2(tmp_path_factory.mktemp("rows") / "w.parquet", rows)))
    piece = loader.read("w", rows=slice(start, stop))
    assert piece.numpy().tobytes() == loader["w"][slice(start, stop)].numpy().tobytes()
    assert piece.shape == loader["w"][slice(start, stop)].shape


def test_rows_of_fused_experts_are_experts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    place: dict[str, Any] = {"group_size": 2, "layer_shape": [3, 2, 5], "row_dims": 2}
    rows = [random_row(rng, "w", n, 5, "int4", row_start=first, **place) for first, n in ((0, 3), (3, 3))]
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", rows)))
    assert loader["w"].shape == (3, 2, 5)
    assert loader.read("w", rows=slice(1, 3)).numpy().tobytes() == loader["w"][1:3].numpy().tobytes()


@pytest.mark.parametrize("rows", [slice(0, 4, 2), slice(None, None, -1), 3])
def test_only_runs_of_rows_are_read(tmp_path: Path, rows: Any) -> None:
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", float32_rows(1))))
    with pytest.raises(InvalidConfig, match="step 1"):
        loader.read("layer0", rows=rows)


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", float32_rows(3))))
    with pytest.raises(UnknownLayer, match="layer1"):
        loader["layr1"]
    with pytest.raises(KeyError):
        loader.read("layr1", rows=slice(1))


def test_tensors_are_the_callers_own(tmp_path: Path) -> None:
    rows = float32_rows(6)
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", rows, row_group_size=3)))
    kept = {}
    for name, tensor in loader:
        kept[name] = tensor.clone()
        tensor.fill_(7)
        assert tensor.is_contiguous()
    for row in rows:
        assert kept[row.name].numpy().tobytes() == row.columns["data"]
        assert loader[row.name].numpy().tobytes() == row.columns["data"]


@pytest.mark.parametrize("name", [0, None, -1, 1.5, b"w", ("w",), slice(0, 1), np.int64(0)])
def test_a_layer_is_asked_for_by_its_name(tmp_path: Path, name: Any) -> None:
    loader = WeightLoader(
        write_v2(tmp_path / "w.parquet", [kept_row("w", np.ones((4, 2), "<f4"), "float32")])
    )
    for ask in (loader.__getitem__, loader.read):
        with pytest.raises(
            InvalidConfig, match=r"name has to be a string, not .*loader\.keys\(\) lists the names"
        ):
            ask(name)
    assert name not in loader
    assert [] not in loader
    with pytest.raises(KeyError):
        loader["nope"]


@pytest.mark.parametrize(
    "rows",
    [5, "0:2", [0, 1], range(2), slice(None, None, 2), slice(3, 0, -1), slice("a", "b"), slice(0.5, 2)],
)
def test_rows_are_a_slice_of_whole_numbers(tmp_path: Path, rows: Any) -> None:
    loader = WeightLoader(
        write_v2(tmp_path / "w.parquet", [kept_row("w", np.ones((4, 2), "<f4"), "float32")])
    )
    with pytest.raises(InvalidConfig, match=r"pass a slice .* such as rows=slice\(0, 1024\)"):
        loader.read("w", rows=rows)


@pytest.mark.parametrize(
    "rows", [slice(-3, None), slice(np.int64(1), np.int64(3)), slice(-1, -3), slice(2, 99)]
)
def test_rows_count_from_the_end_as_in_python(tmp_path: Path, rows: slice) -> None:
    values = np.arange(8, dtype="<f4").reshape(4, 2)
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", [kept_row("w", values, "float32")]))
    assert torch.equal(loader.read("w", rows=rows), torch.from_numpy(values[rows]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"memory_budget": None}, "memory_budget: must be a size"),
        ({"memory_budget": "lots"}, "memory_budget: must be a size"),
        ({"memory_budget": True}, "memory_budget: must be a size"),
        ({"memory_budget": 1.5}, "memory_budget: must be a size"),
        ({"memory_budget": float("nan")}, "memory_budget: must be a size"),
        ({"memory_budget": [2]}, "memory_budget: must be a size"),
        ({"memory_budget": -1}, "memory_budget: must not be negative"),
        ({"workers": "4"}, "workers: must be a whole number, .*leave out the quotes"),
        ({"workers": True}, "workers: must be a whole number"),
        ({"workers": 2.0}, "workers: must be a whole number"),
        ({"workers": np.int64(4)}, r"workers: must be a whole number, .*give it as int\(…\)"),
        ({"verify": "no"}, "verify: must be true or false"),
        ({"dequantize": 0}, "dequantize: must be true or false"),
        ({"dtype": np.float32}, "dtype is .*one of float32"),
        ({"dtype": torch.int8}, "dtype is torch.int8; choose one of float32"),
        ({"dtype": 32}, "dtype is 32; choose one of"),
        ({"storage_options": ["hunter2"]}, "storage_options: must be a mapping"),
        ({"storage_options": {1: "hunter2"}}, "storage_options: has a key which is not a string"),
    ],
)
def test_a_setting_of_a_wrong_type_is_one_error(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    path = write_v2(tmp_path / "w.parquet", [kept_row("w", np.ones((4, 2), "<f4"), "float32")])
    with pytest.raises(InvalidConfig, match=said) as caught:
        WeightLoader(path, **given)
    assert "hunter2" not in str(caught.value)
