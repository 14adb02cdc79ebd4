"""`quantization_config` gives each module its scheme, as compressed-tensors itself matches names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.export.compressed_tensors.schemes import LinearScheme
from arrowquant_dist.export.compressed_tensors.settings import changed_config, quantization_config

_INT4 = LinearScheme(4, 16, symmetric=True)
_SCHEMES = [
    _INT4,
    LinearScheme(4, 16, symmetric=False),
    LinearScheme(8, 0, symmetric=True),
    LinearScheme(2, 32, symmetric=True),
    None,
]
_NAMES = [
    *(
        f"model.layers.{i}.{own}"
        for i in (0, 1, 11)
        for own in ("self_attn.q_proj", "mlp.up_proj", "mlp.up_proj2")
    ),
    *(f"model.vision.layers.{i}.self_attn.q_proj" for i in (0, 1)),
    "model.layers.0.mlp.experts.0.up_proj",
    "lm_head",
]


def _model(names: list[str]) -> torch.nn.Module:
    root = torch.nn.Module()
    for name in names:
        at = root
        *parents, own = name.split(".")
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, torch.nn.Module())
            at = getattr(at, parent)
        at.add_module(own, torch.nn.Linear(64, 8, bias=False))
    return root


def _matched(model: torch.nn.Module, described: Mapping[str, Any]) -> dict[str, tuple[int, int, bool] | None]:
    """What compressed-tensors makes of each Linear: (bits, group size, symmetric), None for nothing."""
    apply_quantization_config(model, QuantizationConfig.model_validate(described), show_progress=False)
    found: dict[str, tuple[int, int, bool] | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            scheme = getattr(module, "quantization_scheme", None)
            weights = scheme.weights if scheme is not None else None
            found[name] = (weights.num_bits, weights.group_size or 0, weights.symmetric) if weights else None
    return found


@settings(max_examples=60)
@given(st.lists(st.sampled_from(_SCHEMES), min_size=len(_NAMES), max_size=len(_NAMES)))
def test_each_module_gets_its_scheme_and_what_is_kept_none(chosen: list[LinearScheme | None]) -> None:
    by_name = dict(zip(_NAMES, chosen, strict=True))
    schemes = {name: scheme for name, scheme in by_name.items() if scheme is not None}
    if not schemes:
        return
    described = quantization_config(schemes, [name for name in by_name if name not in schemes])
    expected = {name: (s.bits, s.group_size, s.symmetric) if s else None for name, s in by_name.items()}
    assert _matched(_model(_NAMES), described) == expected


def test_one_scheme_is_for_every_linear_that_is_not_ignored() -> None:
    described = quantization_config({"a.q_proj": _INT4, "a.k_proj": _INT4}, ["a.gate"], ["lm_head"])
    assert described == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "pack-quantized",
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 16,
                },
            }
        },
        "ignore": ["a.gate", "lm_head"],
    }


@pytest.mark.parametrize("head", ["lm_head", "embed_out"])
def test_a_quantized_head_is_named_since_to_vllm_it_is_no_linear(head: str) -> None:
    described = quantization_config({"a.q_proj": _INT4, head: _INT4}, [])
    assert described["config_groups"]["group_0"]["targets"] == [head, "Linear"]


def test_routed_experts_come_first_and_by_an_expression() -> None:
    int8 = LinearScheme(8, 0, symmetric=True)
    shared = {f"layers.{i}.mlp.shared_experts.{own}_proj": int8 for i in range(9) for own in ("up", "down")}
    routed = {"layers.0.mlp.experts.0.up_proj": _INT4}
    groups = quantization_config(shared | routed, [])["config_groups"]
    assert groups["group_0"]["targets"] == [r"re:layers\.\d+\.mlp\.experts\.\d+\.up_proj$"]
    assert groups["group_1"]["weights"]["num_bits"] == 8


def test_settings_take_the_place_of_the_source_s_and_all_else_stays() -> None:
    config = {"model_type": "llama", "quantization": {}, "quantization_config": {"bits": 4}, "name": "naïve"}
    made = json.loads(changed_config(config, {"quant_method": "compressed-tensors"}, "bfloat16"))
    assert made == {
        "model_type": "llama",
        "name": "naïve",
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "compressed-tensors"},
    }
    assert json.loads(changed_config(config, None, None)) == {"model_type": "llama", "name": "naïve"}
