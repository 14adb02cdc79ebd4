"""bitsandbytes' int8 codes become layers with the values that the library decodes them to."""

from __future__ import annotations

import hashlib
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

CONFIG: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_8bit": True, "_load_in_8bit": True}
DIGEST = "6b5532265296076f"  # sha256 of the float32 weight of bitsandbytes 0.50.2's int8_vectorwise_dequant


def int8(name: str = "a") -> tuple[Tensors, torch.Tensor]:
    """(stored tensors, the float32 weight by numpy: code · SCB · (1 / 127), each product rounded)."""
    generator = np.random.default_rng(8)
    codes = generator.integers(-127, 128, (37, 53), dtype=np.int8)
    maxima = generator.random(37, dtype=np.float32) * 3 + np.float32(0.01)
    tensors = {
        f"{name}.weight": torch.from_numpy(codes),
        f"{name}.SCB": torch.from_numpy(maxima),
        f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    weight = codes.astype(np.float32) * maxima[:, None] * np.float32(1 / 127)
    return tensors, torch.from_numpy(weight)


def save(folder: Path, tensors: Tensors, config: dict[str, Any] | None, dtype: str = "float32") -> Checkpoint:
    return save_model(folder, tensors, config, torch_dtype=dtype)


@pytest.mark.parametrize("config", [CONFIG, None])
def test_values_are_those_of_the_library(tmp_path: Path, config: dict[str, Any] | None) -> None:
    tensors, weight = int8()
    checkpoint = save(tmp_path, {**tensors, "a.bias": torch.ones(37)}, config)
    found = values_of(checkpoint)
    assert found.keys() == {"a.weight", "a.bias"}
    assert_equal(found["a.weight"], weight)
    assert hashlib.sha256(found["a.weight"].numpy().tobytes()).hexdigest()[:16] == DIGEST
    assert checkpoint.decoded == {"a.SCB": "a.weight", "a.weight_format": "a.weight"}
    assert checkpoint.notes == ("decoded from bitsandbytes' int8 codes to float32: 1 layer",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_rounded_once_to_the_model_s_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, weight = int8()
    found = values_of(save(tmp_path, tensors, CONFIG, str(dtype).removeprefix("torch.")))
    assert_equal(found["a.weight"], weight.to(dtype))


def test_older_files_have_no_format(tmp_path: Path) -> None:
    tensors, weight = int8()
    del tensors["a.weight_format"]
    assert_equal(values_of(save(tmp_path, tensors, CONFIG))["a.weight"], weight)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save(tmp_path_factory.mktemp("bnb"), int8()[0], CONFIG)


@settings(max_examples=50)
@given(edges=st.lists(st.integers(0, 37 * 53), min_size=2, max_size=6).map(sorted))
def test_any_slice_is_decoded_alone(model: Checkpoint, edges: list[int]) -> None:
    assert_slices(model, "a.weight", list(pairwise(edges)))


def test_a_plan_remembers_every_part(model: Checkpoint) -> None:
    plan = make_plan(model, QuantizationConfig(), RunConfig(block_bytes=64 << 10))
    again = read_again(written(plan))
    assert again == plan
    assert {block.layer for block in again.blocks} == set(model.layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.SCB": None}, r"'a.weight'.*a.SCB is missing"),
        ({"a.weight": None}, r"'a.SCB'.*a.weight is missing"),
        ({"a.SCB": torch.ones(36)}, r"'a.SCB'.*\[36\] of float32 are not the maxima"),
        ({"a.SCB": torch.ones(37, dtype=torch.int32)}, r"'a.SCB'.*of int32"),
        ({"a.weight": torch.ones(37, 53)}, r"'a.weight'.*of float32 are not int8 codes"),
        ({"a.weight": torch.ones(37, dtype=torch.int8)}, r"'a.weight'.*\[37\] of int8 are not int8 codes"),
        (
            {"a.weight_format": torch.tensor(2, dtype=torch.uint8)},
            r"the format 'col_turing' are not supported",
        ),
        ({"a.weight_format": torch.tensor(9, dtype=torch.uint8)}, r"the format '9' are not supported"),
        ({"a.weight_format": torch.ones(2)}, r"'a.weight_format'.*not the number of a format"),
    ],
)
def test_what_does_not_fit_is_one_error(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {name: tensor for name, tensor in {**int8()[0], **change}.items() if tensor is not None}
    with pytest.raises(InvalidCheckpoint, match=message):
        save(tmp_path, tensors, CONFIG)
