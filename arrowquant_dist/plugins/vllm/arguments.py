"""Refuses arguments of vLLM that mean nothing for a dataset and would otherwise be ignored.

Of vLLM 0.32's arguments, only these concern weights and are the loader's responsibility. Others are vLLM's own
(`dtype`, `hf_overrides`, `max_model_len`, LoRA …): they have the same effect as for any model, or the loader sees their
effect on the model's config. `safetensors_…`, `download_dir` and `pt_load_map_location` say how to read files that do
not exist here, and change no value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arrowquant_dist.errors import InvalidConfig, listed

_IGNORED_BY_DEFAULT = "original/**/*"  # by vLLM, in Meta's checkpoints


def check_load_config(load_config: Any) -> None:
    """Raises InvalidConfig if files are to be left out, which would leave out layers. load_config: vLLM's."""
    patterns = getattr(load_config, "ignore_patterns", ())
    unknown = sorted({patterns} if isinstance(patterns, str) else {*patterns})
    unknown = [pattern for pattern in unknown if pattern != _IGNORED_BY_DEFAULT]
    if unknown:
        message = (
            f"ignore_patterns ({listed(unknown)}) names files of a checkpoint, but load_format='arrowquant' reads the "
            "layers of a dataset; leave it out"
        )
        raise InvalidConfig(message)


def check_model_config(model_config: Any) -> None:
    """Raises InvalidConfig if a version is requested of something that has none: a folder, which vLLM takes as it is.
    model_config: vLLM's."""
    places = {
        "revision": model_config.model,
        "code_revision": model_config.model,
        "tokenizer_revision": model_config.tokenizer,
    }
    # if no tokenizer revision was given it is the model's, which is reported first
    for name, place in places.items():
        revision = getattr(model_config, name, None)
        if revision is not None and isinstance(place, str) and Path(place).exists():
            if name == "code_revision" and _has_code_elsewhere(model_config):
                continue
            message = (
                f"{name}={str(revision)!r} names a version on the Hub, but this folder has none; leave it out, or pass "
                "the folder of that version"
            )
            raise InvalidConfig(message, uri=place)


def check_draft(model_config: Any, served: Any, *, names_target: bool) -> None:
    """Raises InvalidConfig for a draft model if a single target was named, which is that of the served model.
    model_config: that of the model to load. served: that of the served model. names_target: whether a target was named.

    Without a named target, a draft model is read from its own folder.
    """
    if names_target and model_config is not served and model_config.model != served.model:
        message = (
            f"model_loader_extra_config names the target of {served.model}, but this is the draft model; pass both as "
            "folders that `arrowquant vllm` makes and name no target, or give the draft model a draft_load_config in "
            "speculative_config"
        )
        raise InvalidConfig(message, uri=str(model_config.model))


def _has_code_elsewhere(model_config: Any) -> bool:
    """Returns whether the config names code in a repository (`owner/name--module.Class`), whose version this is."""
    named = getattr(getattr(model_config, "hf_config", None), "auto_map", None) or {}
    return any("--" in str(place) for place in named.values())
