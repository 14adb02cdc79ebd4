"""A tiny model of every family that transformers knows: its default config with smaller numbers.

Widths are all divided by the same number, so that divisors still divide them; depths, experts and vocabularies are cut.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

MOST_PARAMS = 25_000_000
WIDTHS, HEADS = 16, 4  # divisors of widths and of numbers of heads; the width of a head is divided by 4 too

_DEPTHS = re.compile(
    r"(^|_)(n_)?(num_)?(layers?|blocks?|stages|depth)($|_)|num_(hidden|encoder|decoder)_|n_layer"
)
_NO_DEPTHS = re.compile(
    r"norm|_type|indices|freq|stride|size|dim|drop|ids|scale|rate|_step|kernel|feat_extract|head|offset|period|group"
)
_DEPTH_LISTS = re.compile(r"depths|layer_depths|num_layers|layers|num_blocks|layer_counts")
_EXPERTS = re.compile(r"experts?$|num_experts|n_routed_experts|num_local_experts")
_TAKEN = re.compile(r"experts_per_tok|(^|moe_)top_?k$|moe_k|moe_topk")
_IDS = re.compile(r"token_id$|_token_index$|_id$|token_ids$|_idx$")
_VOCABULARY = re.compile(r"vocab")
_HEADS = re.compile(r"(^|_)(num_)?(attention_|key_value_|kv_)?heads?$|_heads$")
_OF_A_HEAD = re.compile(r"head_dim|d_kv$|d_head$|mrope_section|head_size|d_state")
_WIDTHS = re.compile(
    r"size|dim|width|channels|filters|units|features|d_model|d_ff|d_inner|n_embd|n_inner|ffn|hidden|inner|rank|planes"
)
_NO_WIDTHS = re.compile(
    r"image_size|patch|kernel|window|grid|max_|stride|pool|chunk|block_size|num_|group|n_fft|sampling|crop|spatial|"
    r"temporal|_bins|input_size|time_step|_ratio|scale|in_channels|_types|type_|factor|chann?el_dim|num_channels|"
    r"hidden_act|expand|tile|batch|mel|state_size|n_groups|sinusoid|feature_size|_layers"
)
_GROUPS = re.compile(r"num_groups|norm_groups|_group_norm|n_groups$|groupnorm")
# Settings that depend on the depth, and are computed if they are left out.
_DERIVED = ("out_features", "out_indices", "stage_names", "per_layer_config")
# Settings for which a family has no default, or one that fits no other size.
_SETTINGS: dict[str, dict[str, Any]] = {
    family: {"prediction_length": 8} for family in ("autoformer", "informer", "time_series_transformer")
}


def families() -> list[str]:
    return sorted(CONFIG_MAPPING.keys())


def classes_of(family: str) -> list[str]:
    """Names of the model classes that the Auto classes choose for a family's config, base model first."""
    found: dict[str, None] = {}
    for name in (
        "MODEL_MAPPING_NAMES",
        *sorted(n for n in dir(modeling_auto) if n.endswith("_MAPPING_NAMES")),
    ):
        if name == "CONFIG_MAPPING_NAMES":
            continue
        classes = getattr(modeling_auto, name).get(family, ())
        for one in (classes,) if isinstance(classes, str) else classes:
            if one:
                found[one] = None
    return [*found]


def tiny_config(family: str) -> PreTrainedConfig:
    """The family's default config, made small. Raises whatever the config raises if it has no defaults."""
    config_class = CONFIG_MAPPING[family]
    return config_class.from_dict(_small(config_class().to_dict()) | _SETTINGS.get(family, {}))


def tiny_model(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """A model with random values in every parameter, even if transformers initializes it with zeros or ones."""
    torch.manual_seed(0)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(config).parameters())
    if count > MOST_PARAMS:
        raise ValueError(f"has {count} parameters, too many for a test")
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.normal_(0, 0.05)
    return model


def _small(values: dict[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in values.items() if key not in _DERIVED}
    found = {key: _smaller(key, value) for key, value in values.items()}
    for depth in ("num_hidden_layers", "n_layer", "num_layers"):
        before = values.get(depth)
        if isinstance(before, int) and before > 2:
            for key, value in values.items():
                if isinstance(value, list) and len(value) == before:
                    found[key] = [_smaller(key, item) for item in _of_every_kind(value, found[depth])]
    return found


def _smaller(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _small(value)
    if isinstance(value, list):
        if _DEPTH_LISTS.search(key) and all(isinstance(item, int) for item in value):
            return [min(item, 2) for item in value]
        return [_smaller(key, item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return _smaller_number(key, value)


def _smaller_number(key: str, value: int) -> int:
    if _IDS.search(key):
        return min(value, 3)
    if _VOCABULARY.search(key) and value > 64:
        return max(64, value // 256)
    if _TAKEN.search(key):
        return min(value, 2)
    if _EXPERTS.search(key):
        return min(value, 4)
    if _GROUPS.search(key):
        return min(value, 2)
    if _OF_A_HEAD.search(key):
        return value // HEADS if value >= HEADS * 4 else value
    if _HEADS.search(key):
        return value // HEADS if value >= HEADS and value % HEADS == 0 else value
    if _DEPTHS.search(key) and not _NO_DEPTHS.search(key):
        return min(value, 2)
    if _WIDTHS.search(key) and not _NO_WIDTHS.search(key):
        return value // WIDTHS if value >= WIDTHS * 4 else value
    return value


def _of_every_kind(values: list[Any], depth: int) -> list[Any]:
    kinds = [value for index, value in enumerate(values) if value not in values[:index]]
    return (kinds * depth)[:depth]
