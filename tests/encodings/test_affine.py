"""MLX's codes become layers with the values that MLX decodes them to."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import Tensors, assert_equal, assert_slices, save_model, values_of
from tests.plan.plan_bytes import read_again, written

# sha256 of what mlx 0.32.4 dequantizes the tensors of `affine` to, with scales and biases in float32.
MLX = {
    (2, 32): "762102116a39b31b",
    (2, 64): "a1c7d010458513c9",
    (2, 128): "479c53327c66a558",
    (3, 32): "48c3f2072a2366c2",
    (3, 64): "322a16000dfbe274",
    (3, 128): "3a5592f9ecc94883",
    (4, 32): "21ab7b9341b2fb7f",
    (4, 64): "d1914121e08c1ee2",
    (4, 128): "4869eb1ec054692b",
    (5, 32): "8887efcab18e58dd",
    (5, 64): "4ca20fb4a612ad47",
    (5, 128): "04ca92f3c3c169a1",
    (6, 32): "8167ed2eea474c2c",
    (6, 64): "0c6d9c5eb80e3fdd",
    (6, 128): "035b739460fb84a2",
    (8, 32): "e24e1a1cb729f344",
    (8, 64): "805b774764e69427",
    (8, 128): "c908c977d0b39644",
}


def affine(
    bits: int, group: int, lead: tuple[int, ...] = (12,), name: str = "a"
) -> tuple[Tensors, torch.Tensor]:
    """(stored tensors of a module whose rows have two groups, the float32 weight: one rounding a product and a sum)."""
    generator = np.random.default_rng(bits * 1000 + group)
    codes = generator.integers(0, 1 << bits, (*lead, 2 * group))
    stream = ((codes[..., None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(*lead, -1)
    words = np.packbits(stream, axis=-1, bitorder="little").view("<u4")
    scales = (generator.random((*lead, 2)) * 0.02 - 0.01).astype(np.float16)
    biases = (generator.random((*lead, 2)) - 0.5).astype(np.float16)
    found = codes.reshape(*lead, 2, group).astype(np.float32) * scales.astype(np.float32)[..., None]
    weight = (found + biases.astype(np.float32)[..., None]).reshape(*lead, 2 * group)
    tensors = {
        f"{name}.weight": torch.from_numpy(words),
        f"{name}.scales": torch.from_numpy(scales),
        f"{name}.biases": torch.from_numpy(biases),
    }
    return tensors, torch.from_numpy(weight)


def save(
    folder: Path, tensors: Tensors, quantization: dict[str, Any] | None, dtype: str = "float32"
) -> Checkpoint:
    """MLX writes its settings twice."""
    keys = [] if quantization is None else ["quantization", "quantization_config"]
    config = {"torch_dtype": dtype, **dict.fromkeys(keys, quantization)}
    (folder / "config.json").write_text(json.dumps(config))
    return save_model(folder, tensors)


@pytest.mark.parametrize(("bits", "group"), MLX)
def test_values_are_those_of_the_library(tmp_path: Path, bits: int, group: int) -> None:
    tensors, weight = affine(bits, group)
    checkpoint = save(
        tmp_path, {**tensors, "a.bias": torch.ones(12)}, {"group_size": group, "bits": bits, "mode": "affine"}
    )
    found = values_of(checkpoint)
    assert found.keys() == {"a.weight", "a.bias"}
    assert_equal(found["a.weight"], weight)
    assert hashlib.sha256(found["a.weight"].numpy().tobytes()).hexdigest()[:16] == MLX[bits, group]
    assert checkpoint.decoded == {"a.scales": "a.weight", "a.biases": "a.weight"}
    label = f"decoded from MLX's {bits}-bit codes, scales and biases to float32: 1 layer"
    assert checkpoint.notes == (label,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_are_rounded_once_to_the_model_s_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, weight = affine(4, 64)
    checkpoint = save(tmp_path, tensors, {"group_size": 64, "bits": 4}, str(dtype).removeprefix("torch."))
    assert_equal(values_of(checkpoint)["a.weight"], weight.to(dtype))


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_a_stack_of_experts_keeps_its_name_and_shape(tmp_path: Path, bits: int) -> None:
    tensors, weight = affine(bits, 32, (3, 10), "model.layers.0.mlp.switch_mlp.up_proj")
    checkpoint = save(tmp_path, tensors, {"group_size": 32, "bits": bits})
    name = "model.layers.0.mlp.switch_mlp.up_proj.weight"
    assert_equal(values_of(checkpoint)[name], weight)
    assert_slices(checkpoint, name, [(9 * 64, 21 * 64), (5, 29 * 64 + 3)])


def test_modules_may_have_bits_and_groups_of_their_own(tmp_path: Path) -> None:
    tensors: Tensors = {"model.norm.weight": torch.ones(5)}
    expected: Tensors = {}
    for name, bits, group in (("embed_tokens", 6, 32), ("up", 4, 64), ("down", 8, 64), ("gate", 2, 128)):
        own, expected[f"{name}.weight"] = affine(bits, group, name=name)
        tensors |= own
    quantization = {
        "group_size": 64,
        "bits": 4,
        "embed_tokens": {"group_size": 32, "bits": 6},
        "down": {"bits": 8},
        "gate": {"group_size": 128, "bits": 2, "mode": "affine"},
        "up": True,
        "lm_head": False,
    }
    found = values_of(save(tmp_path, tensors, quantization))
    assert found.keys() == {"model.norm.weight", *expected}
    for name, weight in expected.items():
        assert_equal(found[name], weight)


# sha256 of what mlx 0.32.4 dequantizes the tensors of `microscaled` to, as float32.
MICROSCALED = {
    "mxfp4": (8, "1370a758980bc62a"),
    "mxfp8": (16, "16c7f8b9fb6075ad"),
    "nvfp4": (8, "a45cf455d329c983"),
}


def microscaled() -> dict[str, Tensors]:
    """{mode: the tensors of a module}. mxfp8 has no NaN among its codes."""
    generator = np.random.default_rng(9)
    found: dict[str, Tensors] = {}
    for mode, (words, _) in MICROSCALED.items():
        codes = generator.integers(0, 1 << 32, (6, words), dtype=np.uint32)
        if mode == "mxfp8":
            codes &= np.uint32(0x7E7E7E7E) ^ np.uint32(0x80808080)
        groups, low, high = (4, 1, 120) if mode == "nvfp4" else (2, 115, 135)
        scales = generator.integers(low, high, (6, groups), dtype=np.uint8)
        found[mode] = {"a.weight": torch.from_numpy(codes), "a.scales": torch.from_numpy(scales)}
    return found


@pytest.mark.parametrize("mode", MICROSCALED)
def test_microscaled_modes_are_those_of_the_library(tmp_path: Path, mode: str) -> None:
    bits = int(mode[-1])
    quantization = {"group_size": 16 if mode == "nvfp4" else 32, "bits": bits, "mode": mode}
    checkpoint = save(tmp_path, microscaled()[mode], quantization)
    found = values_of(checkpoint)["a.weight"]
    assert found.shape == (6, 64)
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == MICROSCALED[mode][1]
    assert_slices(checkpoint, "a.weight", [(70, 201)])


@pytest.mark.parametrize(
    ("mode", "what"), [("nf5", "MLX's mode 'nf5'"), ("nvfp4", "MLX's nvfp4 with a global scale")]
)
def test_what_is_not_decoded_stays_byte_for_byte_and_is_named(tmp_path: Path, mode: str, what: str) -> None:
    tensors = {
        "a.weight": torch.ones(6, 8, dtype=torch.uint32),
        "a.scales": torch.ones(6, 4, dtype=torch.uint8),
        "a.global_scale": torch.ones(()),
    }
    checkpoint = save(tmp_path, tensors, {"group_size": 16, "bits": 4, "mode": mode})
    assert checkpoint.kept == dict.fromkeys(tensors, f"codes of {what}, which can't be decoded")
    plan = make_plan(checkpoint, QuantizationConfig(), RunConfig())
    assert {block.spec.quant_type for block in plan.blocks} == {"none"}


@pytest.fixture(scope="module", params=[2, 3, 5, 8])
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tensors, _ = affine(request.param, 32, (61,))
    return save(tmp_path_factory.mktemp("mlx"), tensors, {"group_size": 32, "bits": request.param})


@settings(max_examples=50)
@given(edges=st.lists(st.integers(0, 61 * 64), min_size=2, max_size=6).map(sorted))
def test_any_slice_is_decoded_alone(odd: Checkpoint, edges: list[int]) -> None:
    assert_slices(odd, "a.weight", list(pairwise(edges)))


def test_a_plan_remembers_every_part(odd: Checkpoint) -> None:
    plan = make_plan(odd, QuantizationConfig(), RunConfig(block_bytes=64 << 10))
    again = read_again(written(plan))
    assert again == plan
    assert {block.layer for block in again.blocks} == set(odd.layers)


@pytest.mark.parametrize(
    ("change", "quantization", "message"),
    [
        ({"a.scales": None}, {}, r"'a.weight'.*a.scales is missing"),
        ({"a.biases": None}, {}, r"'a.weight'.*a.biases is missing"),
        ({"a.scales": torch.ones(12, 3)}, {}, r"16 words and 3 scales per row|'a.biases'"),
        (
            {"a.biases": torch.ones(12, 1)},
            {},
            r"'a.biases'.*\[12, 1\] of float32 do not fit codes \[12, 16\]",
        ),
        ({"a.biases": torch.ones(11, 2)}, {}, r"'a.biases'.*\[11, 2\]"),
        ({"a.scales": torch.ones(12, 2, dtype=torch.int32)}, {}, r"'a.scales'.*of int32 do not fit"),
        ({}, {"bits": 8}, r"16 words and 2 scales per row do not fit 8 bits in groups of 64"),
        ({}, {"group_size": 32}, r"do not fit 4 bits in groups of 32"),
        ({}, {"bits": 9}, r"9 bits are not supported"),
        ({}, {"bits": "4"}, r"config.json.*`bits` of a is '4', not a positive integer"),
        ({}, {"a": False}, r"config.json.*the entry for a is False, but the module has codes"),
        ({}, {"a": {"bits": 2}}, r"do not fit 2 bits"),
        ({}, {"mode": "mxfp4"}, r"the config says 4 bits in groups of 64, which is not mxfp4"),
    ],
)
def test_what_does_not_fit_is_one_error(
    tmp_path: Path, change: dict[str, torch.Tensor | None], quantization: dict[str, Any], message: str
) -> None:
    tensors = {name: tensor for name, tensor in {**affine(4, 64)[0], **change}.items() if tensor is not None}
    with pytest.raises(InvalidCheckpoint, match=message):
        save(tmp_path, tensors, {"group_size": 64, "bits": 4, **quantization})


def test_codes_whose_bits_nothing_tells_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidCheckpoint, match=r"does not determine how many bits.*add `bits` and `group_size`"
    ):
        save(tmp_path, affine(4, 64)[0], None)
