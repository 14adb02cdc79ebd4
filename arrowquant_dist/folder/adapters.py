"""Adapters (LoRA and its relatives): a difference to a model, not a model. Recognized by names and content."""

from __future__ import annotations

import re
from collections.abc import Collection

from arrowquant_dist.errors import InvalidCheckpoint, NotFound, StorageError, listed
from arrowquant_dist.storage.base import Store
from arrowquant_dist.strict_json import parse_json

ADAPTER_CONFIG = "adapter_config.json"
_MAX_CONFIG_NBYTES = 1 << 20
_SHOWN_NAME = 100
_MARKS = (
    *("lora", "hada", "lokr", "oft_", "ia3", "vera", "dora", "prompt_embeddings", "lycoris", "base_model."),
    *(".alpha", ".diff", ".rank_num", ".scalar", "emb_params"),
)
_TENSOR = (
    r"(^|.*[._])(lora_(a|b|up|down|mid|magnitude_vector|embedding_[ab]|e|te\d?|unet|transformer|linear_layer)"
    r"|lora\d*\.(up|down)|hada_w\d(_[abt])?|hada_t\d|lokr_w\d(_[ab])?|lokr_t2|oft_(r|blocks|diag)|boft_r|ia3_l"
    r"|vera_lambda_[bd]|dora_scale|prompt_embeddings|lycoris_.*|emb_params)([._].*|$)"
)
_BESIDE = r".*(\.alpha|\.diff|\.diff_b|\.rank_num|\.scalar)|base_model\.model\..*"


def are_of_adapter(names: Collection[str]) -> bool:
    """Whether a file's tensors are an adapter's: its own matrices, and nothing but what is saved beside these."""
    if not all(any(mark in name.lower() for mark in _MARKS) for name in names):
        return False  # a quick answer for most models, before an expression is compiled
    is_own, is_beside = re.compile(_TENSOR, re.IGNORECASE).match, re.compile(_BESIDE).fullmatch
    return any(is_own(name) for name in names) and all(is_own(name) or is_beside(name) for name in names)


def adapter_error(store: Store, paths: Collection[str], path: str = "") -> InvalidCheckpoint:
    """The error for a source that is only an adapter. store: of the source's folder. paths: the adapter's files.
    path: the folder below."""
    base = _base_model(store, f"{path}/{ADAPTER_CONFIG}" if path else ADAPTER_CONFIG)
    to = f"{base!r}" if base else "the model that it was trained on"
    message = (
        f"this is an adapter ({listed(sorted(paths))}), not a model; merge it into {to} "
        "(with peft: merge_and_unload()), save the result and use it as the source"
    )
    return InvalidCheckpoint(message, uri=store.url(path))


def _base_model(store: Store, config: str) -> str | None:
    """The base model that the adapter's config names, if any: it only makes an error more helpful."""
    try:
        if store.size(config) > _MAX_CONFIG_NBYTES:
            return None
        name = parse_json(store.read(config)).get("base_model_name_or_path")
    except (NotFound, StorageError, ValueError, AttributeError):
        return None
    return name[:_SHOWN_NAME] if isinstance(name, str) else None
