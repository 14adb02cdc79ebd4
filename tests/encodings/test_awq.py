"""AWQ's codes become layers with the values that their format defines, as the library decodes them."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import assert_equal, assert_slices, save_model, values_of
from tests.checkpoint.word_models import Words
from tests.plan.plan_bytes import read_again, written

CONFIG: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}


def save(folder: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any] | None) -> Checkpoint:
    return save_model(folder, tensors, quantization, torch_dtype="float16")


@pytest.mark.parametrize(
    ("shape", "group", "digest"),
    [
        ((64, 96), 32, "1ea29c2e83f94f26"),
        ((64, 96), -1, "d4b747fe8ff9908b"),
        ((40, 128), 64, None),
        ((8, 7), -1, None),
    ],
)
def test_codes_become_the_weight_of_the_full_precision_release(
    tmp_path: Path, shape: tuple[int, int], group: int, digest: str | None
) -> None:
    """digest: sha256 of what AutoAWQ 0.2.7's dequantize_gemm makes of the same tensors, transposed."""
    made = Words.random(shape, 4, shape[1] if group == -1 else group)
    bias = torch.ones(shape[0], dtype=torch.float16)
    checkpoint = save(tmp_path, {**made.awq(), "a.bias": bias}, {**CONFIG, "group_size": group})
    assert {layer.name for layer in checkpoint.layers} == {"a.weight", "a.bias"}
    found = values_of(checkpoint)["a.weight"]
    assert_equal(found, made.weight())
    assert digest in (None, hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16])
    assert checkpoint.decoded == dict.fromkeys(made.awq(), "a.weight")
    assert checkpoint.notes == ("decoded from AWQ's 4-bit codes and scales to float16: 1 layer",)


@pytest.mark.parametrize(
    "quantization",
    [
        None,
        {"quant_method": "awq"},
        {"quant_method": "awq", "bits": 4, "group_size": 32, "format": "gemm"},
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True},
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 32},
    ],
)
def test_every_writer_s_config_is_understood(tmp_path: Path, quantization: dict[str, Any] | None) -> None:
    made = Words.random((64, 96), 4, 32)
    assert_equal(values_of(save(tmp_path, made.awq(), quantization))["a.weight"], made.weight())


def test_the_config_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    made = Words.random((64, 96), 4, 32)
    save(tmp_path, made.awq(), None)
    (tmp_path / "quant_config.json").write_text('{"w_bit": 4, "q_group_size": 48, "version": "GEMM"}')
    with pytest.raises(InvalidCheckpoint, match=r"3, 64\] do not fit 96 inputs in groups of 48"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "quant_config.json").write_text('{"w_bit": 4, "q_group_size": 32, "version": "GEMM"}')
    assert_equal(values_of(open_checkpoint(str(tmp_path)))["a.weight"], made.weight())


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save(tmp_path_factory.mktemp("awq"), Words.random((136, 41), 4, 41).awq(), None)


@settings(max_examples=50)
@given(edges=st.lists(st.integers(0, 136 * 41), min_size=2, max_size=6).map(sorted))
def test_any_slice_is_decoded_alone(odd: Checkpoint, edges: list[int]) -> None:
    assert_slices(odd, "a.weight", list(pairwise(edges)))


def test_a_plan_remembers_every_part(odd: Checkpoint) -> None:
    plan = make_plan(odd, QuantizationConfig(), RunConfig(block_bytes=64 << 10))
    again = read_again(written(plan))
    assert again == plan
    assert {block.layer for block in again.blocks} == set(odd.layers)


@pytest.mark.parametrize(
    ("shape", "group"), [((24, 128), 32), ((9, 128), 64), ((40, 256), 128), ((3, 96), -1)]
)
def test_the_layout_of_gemv_has_rows_of_codes_and_more_scales_than_groups(
    tmp_path: Path, shape: tuple[int, int], group: int
) -> None:
    made = Words.random(shape, 4, shape[1] if group == -1 else group)
    checkpoint = save(tmp_path, made.gemv(), {**CONFIG, "group_size": group, "version": "gemv"})
    assert_equal(values_of(checkpoint)["a.weight"], made.weight())
    assert_slices(checkpoint, "a.weight", [(5, 7), (shape[1] + 1, shape[1] * 3 - 1)])


def test_a_gemv_model_with_too_few_scales_is_an_error(tmp_path: Path) -> None:
    made = Words.random((24, 128), 4, 32)
    with pytest.raises(InvalidCheckpoint, match=r"\[24, 32\] do not fit 128 inputs in groups of 2"):
        save(tmp_path, made.gemv(), {**CONFIG, "group_size": 2, "version": "gemv"})


def test_codes_behind_scaled_activations_are_no_weights_of_the_full_precision_model(tmp_path: Path) -> None:
    """Of Falcon, MPT, StarCoder2 …: AutoAWQ adds a module that divides what the layer multiplies."""
    made = Words.random((64, 96), 4, 32)
    tensors = {**made.awq("mlp.down"), "mlp.act.scales": torch.ones(96, dtype=torch.float16)}
    checkpoint = save(tmp_path, tensors, CONFIG)
    why = "codes of AWQ with scaled activations (mlp.act.scales), which can't be decoded"
    assert checkpoint.kept == dict.fromkeys(tensors, why)


def test_a_config_without_a_dtype_leaves_it_to_the_scales(tmp_path: Path) -> None:
    made = Words.random((64, 96), 4, 32)
    found = values_of(save_model(tmp_path, made.awq(), CONFIG))
    assert_equal(found["a.weight"], made.weight(torch.float16))


_I32 = torch.int32


@pytest.mark.parametrize(
    ("change", "quantization", "message"),
    [
        ({"a.qzeros": None}, {}, r"layer 'a.qweight'.*a.qzeros is missing"),
        ({"a.scales": None}, {}, r"layer 'a.qweight'.*a.scales is missing"),
        ({"a.qzeros": torch.zeros(3, 7, dtype=_I32)}, {}, r"'a.qzeros'.*\[3, 7\].*needs \[3, 8\]"),
        ({"a.qzeros": torch.zeros(2, 8, dtype=_I32)}, {}, r"'a.qzeros'.*\[2, 8\].*needs \[3, 8\]"),
        ({"a.scales": torch.ones(3, 63)}, {}, r"'a.scales'.*\[3, 63\].*needs \[3, 64\]"),
        ({"a.scales": torch.ones(4, 64)}, {}, r"\[4, 64\] do not fit 96 inputs in groups of 32"),
        ({}, {"quant_method": "gptq"}, r"the config says 4 bits, which codes \[96, 8\]"),
    ],
)
def test_what_does_not_fit_is_one_error(
    tmp_path: Path, change: dict[str, torch.Tensor | None], quantization: dict[str, Any], message: str
) -> None:
    made = Words.random((64, 96), 4, 32)
    tensors = {name: tensor for name, tensor in {**made.awq(), **change}.items() if tensor is not None}
    with pytest.raises(InvalidCheckpoint, match=message):
        save(tmp_path, tensors, {**CONFIG, **quantization})


@pytest.mark.parametrize(
    ("quantization", "what"),
    [
        ({"version": "gemv_fast"}, "AWQ's layout 'gemv_fast'"),
        ({"version": "marlin"}, "AWQ's layout 'marlin'"),
        ({"version": "exllama"}, "AWQ's layout 'exllama'"),
        ({"bits": 3}, "AWQ with 3 bits"),
    ],
)
def test_layouts_that_are_not_decoded_stay_byte_for_byte_and_are_named(
    tmp_path: Path, quantization: dict[str, Any], what: str
) -> None:
    tensors = Words.random((64, 96), 4, 32).awq()
    checkpoint = save(tmp_path, tensors, {**CONFIG, **quantization})
    assert checkpoint.kept == dict.fromkeys(tensors, f"codes of {what}, which can't be decoded")
    plan = make_plan(checkpoint, QuantizationConfig(), RunConfig())
    assert {block.spec.quant_type for block in plan.blocks} == {"none"}
    assert any(what in note for note in plan.notes)
