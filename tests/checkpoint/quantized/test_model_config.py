"""What config.json says about codes is also found in the configs of a model's parts, and removed from all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist.checkpoint.sidecars import published
from tests.checkpoint.quantized_models import assert_equal, float8, save_model, scales, values_of

FP8 = {"quant_method": "fp8", "weight_block_size": [2, 4]}


def nested(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`a.b` and {…}: {"a": {"b": {…}}}."""
    for part in reversed(path.split(".") if path else []):
        settings = {part: settings}
    return settings


@pytest.mark.parametrize(
    "path",
    [
        "",
        "text_config",
        "llm_config",
        "language_config",
        "thinker_config.text_config",
        "talker_config",
        "decoder",
    ],
)
def test_blocks_are_those_of_the_part_that_names_them_and_the_published_config_has_no_codes(
    tmp_path: Path, path: str
) -> None:
    weight, scale = float8(4, 8), scales(2, 2)
    config = nested(path, {"quantization_config": FP8, "hidden_size": 8})
    checkpoint = save_model(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale}, **config)
    expected = weight.float() * scale.repeat_interleave(2, 0).repeat_interleave(4, 1)
    assert_equal(values_of(checkpoint)["a.weight"], expected.to(torch.bfloat16))
    data = (tmp_path / "config.json").read_bytes()
    assert json.loads(published("config.json", data, checkpoint)) == nested(path, {"hidden_size": 8})


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"llm_config": {"torch_dtype": "float16"}}, torch.float16),
        ({"thinker_config": {"text_config": {"dtype": "float32"}}}, torch.float32),
        ({"dtype": "float16", "text_config": {"dtype": "float32"}}, torch.float16),
        ({"vision_config": {"dtype": "float32"}}, torch.bfloat16),
        (
            {"vision_config": {"dtype": "float32"}, "language_config": {"torch_dtype": "float16"}},
            torch.float16,
        ),
    ],
)
def test_the_dtype_is_the_model_s_or_its_text_model_s(
    tmp_path: Path, config: dict[str, Any], dtype: torch.dtype
) -> None:
    checkpoint = save_model(tmp_path, {"a.weight": float8(4, 8), "a.weight_scale": scales(1)}, **config)
    assert values_of(checkpoint)["a.weight"].dtype == dtype


def test_settings_of_the_text_model_come_before_those_of_other_parts(tmp_path: Path) -> None:
    weight, scale = float8(4, 8), scales(2, 2)
    other = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    config = {"audio_config": {"quantization_config": other}, "llm_config": {"quantization_config": FP8}}
    checkpoint = save_model(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale}, **config)
    expected = weight.float() * scale.repeat_interleave(2, 0).repeat_interleave(4, 1)
    assert_equal(values_of(checkpoint)["a.weight"], expected.to(torch.bfloat16))
