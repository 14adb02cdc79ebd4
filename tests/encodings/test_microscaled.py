"""MXFP4 weights become layers with the values that transformers decodes them to, oriented as in bfloat16 releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import Tensors, assert_equal, assert_slices, save_model, values_of
from tests.datasets import weights_of
from tests.plan.plan_bytes import read_again, written

CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
NAME = "model.layers.0.mlp.experts.gate_up_proj"


def blocks(experts: int, rows: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of codes, where there is room, and moderate powers of two."""
    count = experts * rows * groups
    codes = (torch.arange(count * 16) * 7919 % 256).to(torch.uint8).reshape(experts, rows, groups, 16)
    return codes, (torch.arange(count) % 23 + 110).to(torch.uint8).reshape(experts, rows, groups)


def stored(codes: torch.Tensor, powers: torch.Tensor) -> Tensors:
    return {f"{NAME}_blocks": codes, f"{NAME}_scales": powers, f"{NAME}_bias": torch.ones(*codes.shape[:2])}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 70, 3), (1, 1, 1), (3, 128, 4)])
def test_experts_are_what_transformers_decodes(
    tmp_path: Path, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    codes, powers = blocks(*shape)
    checkpoint = save_model(tmp_path, stored(codes, powers), CONFIG, dtype=str(dtype).removeprefix("torch."))
    found = values_of(checkpoint)
    assert found.keys() == {NAME, f"{NAME}_bias"}
    assert_equal(found[NAME], convert_moe_packed_tensors(codes, powers, dtype=dtype).contiguous())
    assert checkpoint.decoded == {f"{NAME}_blocks": NAME, f"{NAME}_scales": NAME}


def test_every_power_of_two_is_decoded_as_transformers_does(tmp_path: Path) -> None:
    codes, _ = blocks(1, 255, 1)
    powers = torch.arange(255).to(torch.uint8).reshape(1, 255, 1)
    expected = convert_moe_packed_tensors(codes, powers)
    found = values_of(save_model(tmp_path, stored(codes, powers), CONFIG))[NAME]
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    assert torch.equal(found[finite], expected[finite])


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_model(tmp_path_factory.mktemp("experts"), stored(*blocks(3, 10, 5)), CONFIG)


@settings(max_examples=60)
@given(edges=st.lists(st.integers(0, 3 * 160 * 10), min_size=2, max_size=2).map(sorted))
def test_any_slice_is_decoded_alone(experts: Checkpoint, edges: list[int]) -> None:
    assert_slices(experts, NAME, [(edges[0], edges[1])])


def test_the_dataset_is_that_of_the_bfloat16_release(tmp_path: Path) -> None:
    codes, powers = blocks(4, 96, 8)
    save_model(tmp_path / "mxfp4", {f"{NAME}_blocks": codes, f"{NAME}_scales": powers}, CONFIG)
    save_model(tmp_path / "bf16", {NAME: convert_moe_packed_tensors(codes, powers)})
    run = RunConfig(engine="inline", block_bytes=64 << 10)
    for name in ("mxfp4", "bf16"):
        quantize(str(tmp_path / name), str(tmp_path / f"{name}-int8"), QuantizationConfig(), run)
    found = weights_of(tmp_path / "mxfp4-int8")
    assert found == weights_of(tmp_path / "bf16-int8")
    assert len(found) > 2


def test_rows_are_the_inputs_of_each_expert_and_a_plan_remembers_the_parts(experts: Checkpoint) -> None:
    plan = make_plan(experts, QuantizationConfig(), RunConfig())
    block = next(block for block in plan.blocks if block.layer.name == NAME)
    assert (block.spec.row_dims, block.rows, block.columns) == (2, 3 * 160, 10)
    assert read_again(written(plan)) == plan


def test_part_of_an_expert_takes_part_of_its_codes(tmp_path: Path) -> None:
    rows, groups = 4096, 128
    checkpoint = save_model(tmp_path, stored(*blocks(2, rows, groups)), CONFIG)
    (layer,) = (layer for layer in checkpoint.layers if layer.name == NAME)
    read: list[int] = []
    with SourceReader(files=checkpoint.files) as reader:
        original = reader.read_into
        reader.read_into = lambda uri, at, out: (read.append(out.nbytes), original(uri, at, out))  # type: ignore[method-assign,assignment,func-returns-value]
        reader.read([(layer, 0, rows * 32 * groups // 2)])  # half of the first expert's inputs
    codes = rows * groups * 16
    assert sum(read) <= codes + codes // 8
    assert max(read) <= 16 << 20


def test_the_reference_checkpoint_keeps_its_orientation(tmp_path: Path) -> None:
    codes, powers = blocks(2, 8, 3)
    tensors = {"block.0.mlp.mlp1_weight.blocks": codes, "block.0.mlp.mlp1_weight.scales": powers}
    found = values_of(save_model(tmp_path, tensors))
    expected = convert_moe_packed_tensors(codes, powers).transpose(1, 2)
    assert_equal(found["block.0.mlp.mlp1_weight"], expected)


def packed(format_name: str, bits: int, dtype: torch.dtype) -> tuple[Tensors, torch.Tensor, dict[str, Any]]:
    weights = {
        "num_bits": bits,
        "type": "float",
        "strategy": "group",
        "group_size": 32,
        "symmetric": True,
        "scale_dtype": "torch.uint8",
    }
    group = {"targets": ["Linear"], "weights": weights, "format": format_name}
    scheme = QuantizationScheme(**group)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 96, generator=generator).to(dtype)
    scale = torch.exp2(torch.randint(-6, 3, (24, 3), generator=generator)).to(dtype)
    compressor = BaseCompressor.get_value_from_registry(format_name)
    state = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    config = {
        "quant_method": "compressed-tensors",
        "format": format_name,
        "config_groups": {"group_0": group},
    }
    return {f"a.{key}": t for key, t in state.items()}, compressor.decompress(state, scheme)["weight"], config


@pytest.mark.parametrize(("format_name", "bits"), [("mxfp4-pack-quantized", 4), ("mxfp8-quantized", 8)])
def test_microscaled_formats_of_compressed_tensors(tmp_path: Path, format_name: str, bits: int) -> None:
    tensors, expected, config = packed(format_name, bits, torch.bfloat16)
    found = values_of(save_model(tmp_path, tensors, config))
    assert found.keys() == {"a.weight"}
    assert_equal(found["a.weight"], expected.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float4_e2m1fn_x2])
def test_pairs_with_their_own_powers_as_deepseek_v4_has_experts(tmp_path: Path, dtype: torch.dtype) -> None:
    codes, powers = blocks(1, 16, 4)
    pairs = codes.reshape(16, 64).view(dtype)
    tensors = {"a.weight": pairs, "a.scale": powers.reshape(16, 4).view(torch.float8_e8m0fnu)}
    expected = convert_moe_packed_tensors(codes, powers)[0].T
    assert_equal(values_of(save_model(tmp_path, tensors))["a.weight"], expected)


@pytest.mark.parametrize(
    ("codes", "powers"),
    [
        (torch.zeros(2, 4, 3, 16, dtype=torch.uint8), torch.zeros(2, 4, 2, dtype=torch.uint8)),
        (torch.zeros(2, 4, 3, 16, dtype=torch.uint8), torch.zeros(2, 4, 3)),
    ],
)
def test_scales_that_do_not_fit_are_one_error(
    tmp_path: Path, codes: torch.Tensor, powers: torch.Tensor
) -> None:
    with pytest.raises(InvalidCheckpoint, match=rf"layer '{NAME}_scales'.*do not fit as scales for each 32"):
        save_model(tmp_path, stored(codes, powers), CONFIG)


def test_blocks_of_another_form_stay_as_they_are(tmp_path: Path) -> None:
    tensors = {
        "a_blocks": torch.zeros(4, 3, 16, dtype=torch.uint8),
        "a_scales": torch.zeros(4, 3, dtype=torch.uint8),
        "b_blocks": torch.zeros(2, 4, 3, 16, dtype=torch.uint8),
    }
    assert values_of(save_model(tmp_path, tensors)).keys() == tensors.keys()
