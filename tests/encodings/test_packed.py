"""compressed-tensors' integers become layers with the values that the library decompresses them to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.config import RunConfig
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import Tensors, assert_equal, assert_slices, save_model, values_of
from tests.plan.plan_bytes import read_again, written

PACKED, INTEGERS = "pack-quantized", "int-quantized"
STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "tensor"},
    {"strategy": "channel"},
    {"strategy": "group", "group_size": 32},
    {"strategy": "block", "block_structure": [16, 32]},
]


def compressed(
    form: str, shape: tuple[int, ...], weights: dict[str, Any], dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensors, torch.Tensor, dict[str, Any]]:
    """(the stored tensors of a module `a`, what the library makes of them, its quantization_config)."""
    group = {"targets": ["Linear"], "weights": {"type": "int", **weights}}
    scheme = QuantizationScheme(**group)
    generator = torch.Generator().manual_seed(7)
    grid = scale_shape(shape, weights)
    state = {
        "weight": torch.randn(shape, generator=generator).to(dtype),
        "weight_scale": (torch.rand(grid, generator=generator) * 0.1 + 0.01).to(dtype),
    }
    if not weights["symmetric"]:
        half = 1 << (weights["num_bits"] - 1)
        state["weight_zero_point"] = torch.randint(-half, half, grid, generator=generator).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    expected = compressor.decompress(stored, scheme)["weight"]
    assert expected.dtype == dtype
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return {f"a.{name}": tensor for name, tensor in stored.items()}, expected, config


def scale_shape(shape: tuple[int, ...], weights: dict[str, Any]) -> tuple[int, ...]:
    *lead, rows, columns = shape
    return {
        "tensor": (1,),
        "channel": (*lead, rows, 1),
        "group": (*lead, rows, -(-columns // weights.get("group_size", 1))),
        "block": (
            *lead,
            *(
                -(-n // b)
                for n, b in zip((rows, columns), weights.get("block_structure", [1, 1]), strict=True)
            ),
        ),
    }[weights["strategy"]]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["strategy"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("form", "bits"), [(PACKED, 4), (PACKED, 8), (PACKED, 2), (INTEGERS, 8), (INTEGERS, 4)]
)
def test_integers_are_what_the_library_decompresses(
    tmp_path: Path, form: str, bits: int, strategy: dict[str, Any], *, symmetric: bool
) -> None:
    stored, expected, config = compressed(
        form, (48, 96), {"num_bits": bits, "symmetric": symmetric, **strategy}
    )
    checkpoint = save_model(tmp_path, stored, config)
    assert_equal(values_of(checkpoint)["a.weight"], expected)
    assert {layer.name for layer in checkpoint.layers} == {"a.weight"}
    assert {*checkpoint.decoded, *(layer.name for layer in checkpoint.layers)} == {*stored, "a.weight"}


@pytest.mark.parametrize("columns", [1, 31, 33, 100])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_that_do_not_fill_their_words(
    tmp_path: Path, columns: int, bits: int, *, symmetric: bool
) -> None:
    weights = {"num_bits": bits, "symmetric": symmetric, "strategy": "channel"}
    stored, expected, config = compressed(PACKED, (37, columns), weights)
    checkpoint = save_model(tmp_path, stored, config)
    assert_equal(values_of(checkpoint)["a.weight"], expected)
    assert_slices(
        checkpoint,
        "a.weight",
        [(5 * columns, 36 * columns), (17, 37 * columns - 3) if columns > 1 else (3, 5)],
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_stack_of_experts(tmp_path: Path, *, symmetric: bool) -> None:
    weights = {"num_bits": 4, "symmetric": symmetric, "strategy": "group", "group_size": 32}
    stored, expected, config = compressed(PACKED, (3, 20, 64), weights)
    checkpoint = save_model(tmp_path, stored, config)
    assert_equal(values_of(checkpoint)["a.weight"], expected)
    assert_slices(checkpoint, "a.weight", [(19 * 64, 43 * 64), (40 * 64, 60 * 64), (25 * 64, 26 * 64)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_of_models(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32}
    stored, expected, config = compressed(PACKED, (16, 64), weights, dtype)
    checkpoint = save_model(tmp_path, stored, config, torch_dtype=str(dtype).removeprefix("torch."))
    assert_equal(values_of(checkpoint)["a.weight"], expected)


@pytest.fixture(scope="module")
def asymmetric(tmp_path_factory: pytest.TempPathFactory) -> Any:
    weights = {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32}
    stored, _, config = compressed(PACKED, (61, 96), weights)
    return save_model(tmp_path_factory.mktemp("asymmetric"), stored, config)


@settings(max_examples=50)
@given(edges=st.lists(st.integers(0, 61 * 96), min_size=2, max_size=6).map(sorted))
def test_any_slice_is_decoded_alone(asymmetric: Any, edges: list[int]) -> None:
    assert_slices(asymmetric, "a.weight", list(pairwise(edges)))


def test_a_plan_remembers_every_part(asymmetric: Any) -> None:
    plan = make_plan(asymmetric, QuantizationConfig(), RunConfig(block_bytes=64 << 10))
    again = read_again(written(plan))
    assert again == plan
    assert {block.layer for block in again.blocks} == set(asymmetric.layers)


@pytest.mark.parametrize("in_order", [False, True])
def test_groups_of_columns_by_activation_order(tmp_path: Path, *, in_order: bool) -> None:
    """Column j has the scale of group g_idx[j], and -1 says that they are in order. The library has dropped it, so
    here it decompresses the columns in the order of their groups."""
    weights = {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32}
    stored, plain, config = compressed(PACKED, (10, 96), weights)
    groups = torch.randperm(96, generator=torch.Generator().manual_seed(3)).to(torch.int32) // 32
    checkpoint = save_model(
        tmp_path, {**stored, "a.weight_g_idx": torch.full_like(groups, -1) if in_order else groups}, config
    )
    expected = plain
    if not in_order:
        order = torch.argsort(groups, stable=True)
        sorted_stored = repacked(stored, order)
        compressor = BaseCompressor.get_value_from_registry(PACKED)
        state = {name.removeprefix("a."): tensor for name, tensor in sorted_stored.items()}
        group = QuantizationScheme(**config["config_groups"]["group_0"])
        expected = compressor.decompress(state, group)["weight"][:, torch.argsort(order)]
    assert_equal(values_of(checkpoint)["a.weight"], expected)
    assert_slices(checkpoint, "a.weight", [(3 * 96, 7 * 96)])


def repacked(stored: Tensors, order: torch.Tensor) -> Tensors:
    """The same codes with their columns in another order."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    codes = unpack_from_int32(stored["a.weight_packed"], 4, torch.Size(stored["a.weight_shape"].tolist()))
    return {**stored, "a.weight_packed": pack_to_int32(codes[:, order].contiguous(), 4)}


def test_groups_beyond_the_scales_are_an_error_and_not_read(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32}
    stored, _, config = compressed(PACKED, (10, 96), weights)
    checkpoint = save_model(
        tmp_path, {**stored, "a.weight_g_idx": torch.full((96,), 3, dtype=torch.int32)}, config
    )
    with pytest.raises(
        InvalidCheckpoint, match=r"layer 'a.weight'.*g_idx refers to groups beyond its 3 scales"
    ):
        values_of(checkpoint)


def test_each_module_has_the_scheme_that_names_it(tmp_path: Path) -> None:
    groups: dict[str, Any] = {}
    tensors: Tensors = {}
    expected: Tensors = {}
    for name, target, size in (("a", "Linear", 32), ("b", "re:.*b$", 16), ("c", "c", 48)):
        weights = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": size}
        stored, values, config = compressed(PACKED, (8, 96), weights)
        tensors |= {f"{name}{key[1:]}": tensor for key, tensor in stored.items()}
        expected[f"{name}.weight"] = values
        groups[f"group_{name}"] = {
            **config["config_groups"]["group_0"],
            "targets": [target],
            "format": PACKED,
        }
    config = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    found = values_of(save_model(tmp_path, tensors, config))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert_equal(found[name], values)


def test_unquantized_tensors_stay_and_calibrated_ones_are_left_out(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "symmetric": True, "strategy": "channel"}
    stored, _, config = compressed(INTEGERS, (8, 16), weights)
    others = {
        "lm_head.weight": torch.ones(3, 3),
        "a.input_scale": torch.ones(1),
        "a.weight_zero_point": torch.zeros(8, 1),
    }
    checkpoint = save_model(tmp_path, {**stored, **others}, config)
    assert {layer.name for layer in checkpoint.layers} == {"a.weight", "lm_head.weight"}
    assert checkpoint.left_out.keys() == {"a.input_scale", "a.weight_zero_point"}
    assert checkpoint.notes[0] == "decoded from int8 codes and scales to bfloat16: 1 layer"


GROUPS = {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"}}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"format": "marlin-24"}, "format 'marlin-24' can't be decoded.*run_compressed=False"),
        (
            {"format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}},
            "format 'sparse-24-bitmask' can't",
        ),
        (
            {
                "format": "mixed-precision",
                "config_groups": {"g": {**GROUPS["g"], "format": "mxfp6-pack-quantized"}},
            },
            "mxfp6",
        ),
        ({"format": "new"}, "format 'new' can't"),
        ({"config_groups": None}, "no config_groups"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "W4A16 is not an object"),
        ({"config_groups": {"g": {"targets": "Linear", "weights": {}}}}, "g is not an object"),
        ({"config_groups": {"g": {"targets": ["re:("], "weights": {}}}}, "not a valid or supported regex"),
        ({"config_groups": {"g": {"targets": ["L"], "weights": {"num_bits": "4"}}}}, "num_bits '4'"),
        ({"config_groups": {"g": {"targets": ["L"], "weights": {"group_size": 0}}}}, "groups or blocks of"),
        (
            {"config_groups": {"g": {"targets": ["L"], "weights": {"num_bits": 3}}}},
            "of 3 bits are not supported",
        ),
    ],
)
def test_a_format_that_is_not_decoded_is_an_error_that_names_it(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    stored, _, _ = compressed(PACKED, (8, 32), {"num_bits": 4, "symmetric": True, "strategy": "channel"})
    whole = {"quant_method": "compressed-tensors", "format": PACKED, "config_groups": GROUPS, **config}
    with pytest.raises(InvalidCheckpoint, match=message) as caught:
        save_model(tmp_path, stored, whole)
    assert caught.value.uri is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.weight_scale": None}, "weight_scale is missing"),
        ({"a.weight_shape": None}, "weight_shape is missing"),
        ({"a.weight_zero_point": None}, "weight_zero_point is missing"),
        ({"a.weight_scale": torch.ones(8, 2)}, "do not fit a tensor"),
        ({"a.weight_shape": torch.tensor([8, 300])}, r"do not fit 4-bit weights of shape \[8, 300\]"),
        ({"a.weight_shape": torch.tensor([-8, 32])}, "do not fit 4-bit weights"),
        ({"a.weight_shape": torch.tensor([32])}, "do not fit 4-bit weights"),
        ({"a.weight_shape": torch.ones(2, 1, dtype=torch.int64)}, "can't hold the shape of a weight"),
        ({"a.weight_zero_point": torch.zeros(2, 1, dtype=torch.int32)}, r"zero points \[2, 1\]"),
        ({"a.weight_g_idx": torch.zeros(31, dtype=torch.int32)}, "do not fit as the groups of the columns"),
        ({"a.weight": torch.ones(8, 32)}, "stored a second time"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_one_error(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    weights = {"num_bits": 4, "symmetric": False, "strategy": "channel"}
    stored, _, config = compressed(PACKED, (8, 32), weights)
    changed = {name: tensor for name, tensor in {**stored, **change}.items() if tensor is not None}
    with pytest.raises(InvalidCheckpoint, match=message) as caught:
        save_model(tmp_path, changed, config)
    assert caught.value.layer is not None


def test_codes_of_other_formats_are_kept_and_noted(tmp_path: Path) -> None:
    tensors = {
        "a.qweight": torch.ones(4, 8, dtype=torch.int32),
        "a.qzeros": torch.ones(1, 8, dtype=torch.int32),
        "a.scales": torch.ones(1, 8, dtype=torch.float16),
        "b.weight": torch.ones(8, 4, dtype=torch.uint8),
        "b.weight.absmax": torch.ones(4),
        "c.weight": torch.ones(8, 4, dtype=torch.int8),
        "c.weight_scale": torch.ones(8, 1),
        "d.weight_packed": torch.ones(8, 4, dtype=torch.int32),
    }
    checkpoint = save_model(tmp_path, tensors, {"quant_method": "another", "bits": 4})
    found = values_of(checkpoint)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_equal(found[name], tensor)
    plan = make_plan(checkpoint, QuantizationConfig(), RunConfig())
    assert {block.spec.quant_type for block in plan.blocks} == {"none"}
    assert checkpoint.kept.keys() == tensors.keys()
    assert checkpoint.kept["a.scales"] == "codes of the unknown method 'another', which can't be decoded"
    assert checkpoint.kept["b.weight.absmax"].startswith("codes of bitsandbytes")
    assert [note in plan.notes for note in checkpoint.notes] == [True, True]
