"""Valid values of `min_quality`, and settings that it and `size` can be combined with."""

from __future__ import annotations

from typing import Any

import pytest

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.config.quality import Quality, quality
from arrowquant_dist.errors import InvalidConfig


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.98, Quality(cosine=0.98)),
        ("0.98", Quality(cosine=0.98)),
        (" .9995 ", Quality(cosine=0.9995)),
        ("5%", Quality(excess=0.05)),
        ("0.5 %", Quality(excess=0.005)),
    ],
)
def test_a_cosine_or_a_percentage(value: Any, found: Quality) -> None:
    assert quality(value) == found


@pytest.mark.parametrize(
    "value", [0, 1, 1.0, 0.0, 1.5, -0.5, True, "0%", "-5%", "98", "5 percent", "nan", float("nan"), "", [0.9]]
)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"min_quality: must be"):
        quality(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_quality": "5%"}, "texts: is missing"),
        (
            {"min_quality": 0.9, "hessians": "h"},
            "min_quality: does not use hessians; leave one of them out",
        ),
        ({"texts": "builtin"}, "texts: is used only with min_quality"),
        ({"min_quality": 0.9, "size": "5MB"}, "min_quality: cannot be combined with size"),
        ({"min_quality": 0.9, "quant_type": "int8"}, "quant_type: cannot be combined with min_quality"),
        ({"size": "5MB", "quant_type": "int8"}, "quant_type: cannot be combined with size"),
        ({"size": "5MB", "method": "mse"}, "method: cannot be combined with size"),
        ({"size": "5MB", "per_channel": True}, "per_channel: cannot be combined with size"),
        ({"size": "5MB", "group_size": 128}, "group_size: cannot be combined with size"),
        ({"size": "5MB", "chosen_for": {}}, "chosen_for: belongs to a table"),
    ],
)
def test_pairs_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        QuantizationConfig.from_dict(values)


def test_what_a_command_line_adds_to_a_config_with_a_size_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="per_channel: cannot be combined with size"):
        QuantizationConfig(size="5MB").replace(per_channel=True)
    assert QuantizationConfig(size="5MB").replace(non_finite="keep").size == "5MB"


@pytest.mark.parametrize("values", [{"size": "5MB"}, {"min_quality": "5%", "texts": "builtin"}])
def test_configs_that_ask_are_what_they_are_written_as(values: dict[str, Any]) -> None:
    config = QuantizationConfig.from_dict(values)
    assert QuantizationConfig.from_dict(config.to_dict()) == config
