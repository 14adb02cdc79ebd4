"""What a user says to vLLM that a dataset has nothing for: it would be ignored, and is refused instead.

Of vLLM 0.32's arguments these alone concern weights and are the loader's to honour. Others are vLLM's own (`dtype`,
`hf_overrides`, `max_model_len`, LoRA …): they do with a served dataset what they do with any model, or the loader sees
what they made of the model's config. `safetensors_…`, `download_dir` and `pt_load_map_location` say how files are read
that there are none of, and change no value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arrowquant_dist.errors import InvalidConfig, listed

_IGNORED_BY_DEFAULT = "original/**/*"  # of Meta's checkpoints, by vLLM


def check_load_config(load_config: Any) -> None:
    """load_config: vLLM's. InvalidConfig where it leaves out files, which would leave out layers."""
    patterns = getattr(load_config, "ignore_patterns", ())
    unknown = sorted({patterns} if isinstance(patterns, str) else {*patterns})
    unknown = [pattern for pattern in unknown if pattern != _IGNORED_BY_DEFAULT]
    if unknown:
        message = (
            f"ignore_patterns ({listed(unknown)}) names files of a checkpoint, and load_format='arrowquant' reads the "
            "layers of a dataset; leave it out"
        )
        raise InvalidConfig(message)


def check_model_config(model_config: Any) -> None:
    """model_config: vLLM's. InvalidConfig where a version is asked for of what has none: a folder, which vLLM takes as
    it is."""
    places = {
        "revision": model_config.model,
        "code_revision": model_config.model,
        "tokenizer_revision": model_config.tokenizer,
    }
    # the tokenizer's is the model's where nobody gave it, and that is told first
    for name, place in places.items():
        revision = getattr(model_config, name, None)
        if revision is not None and isinstance(place, str) and Path(place).exists():
            if name == "code_revision" and _has_code_elsewhere(model_config):
                continue
            message = (
                f"{name}={str(revision)!r} names a version on the Hub, and this folder has none; leave it out, or give "
                "the folder of that version"
            )
            raise InvalidConfig(message, uri=place)


def check_draft(model_config: Any, served: Any, *, names_target: bool) -> None:
    """model_config: of the model that is loaded; served: of the one that is served. InvalidConfig where it is another
    one, a draft model, and one target was named for both: that is the served model's.

    A draft model without the name of a target is read from its own folder.
    """
    if names_target and model_config is not served and model_config.model != served.model:
        message = (
            f"model_loader_extra_config names the target of {served.model}, and this is the draft model; give both as "
            "folders that `arrowquant vllm` makes and name no target, or give the draft model a draft_load_config in "
            "speculative_config"
        )
        raise InvalidConfig(message, uri=str(model_config.model))


def _has_code_elsewhere(model_config: Any) -> bool:
    """Whether the folder's config names code in a repository (`owner/name--module.Class`), whose version this is."""
    named = getattr(getattr(model_config, "hf_config", None), "auto_map", None) or {}
    return any("--" in str(place) for place in named.values())
