"""Checks of the arguments of functions that load models, and advice for arguments that only from_pretrained has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from arrowquant_dist.config.checks import invalid, shown
from arrowquant_dist.config.patterns import check_pattern
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader.slots import DECODED_DTYPES

_DEVICE = "the model is loaded on the CPU; move it afterwards with model.to(device)"
_STORED = "the dataset decides how weights are stored; pass codes=True to keep codes in memory"
_CONFIG = "the dataset's config.json says what the model is; change it in the source and quantize again"
_ON_TOKENIZER = "set it on the tokenizer once it is loaded"
_PLACE = "a dataset is read in place; storage_options holds what its storage needs"
_LEFT_OUT = {
    "torch_dtype": "it is called dtype",
    "device_map": _DEVICE,
    "device": _DEVICE,
    "trust_remote_code": "code that comes with a model is not run; leave it out",
    "quantization_config": _STORED,
    "load_in_8bit": _STORED,
    "load_in_4bit": _STORED,
    "config": _CONFIG,
    "state_dict": "the values come from the dataset; replace them once the model is loaded",
    "low_cpu_mem_usage": "memory_budget limits the memory used beside the model",
    "ignore_mismatched_sizes": "name what need not match in leave_out and initialize",
    "output_loading_info": "what does not match is an error; name what need not match in leave_out and initialize",
    **dict.fromkeys(("padding_side", "truncation_side", "model_max_length"), _ON_TOKENIZER),
    **dict.fromkeys(
        (
            "cache_dir",
            "force_download",
            "local_files_only",
            "proxies",
            "revision",
            "token",
            "use_safetensors",
        ),
        _PLACE,
    ),
}


def refuse_unknown(function: str, given: Mapping[str, object]) -> None:
    """Raises InvalidConfig for arguments that `function` lacks, with the alternative for those of from_pretrained."""
    for name in given:
        hint = _LEFT_OUT.get(name, "leave it out; help() lists the arguments that exist")
        raise InvalidConfig(f"{function} takes no {name}: {hint}")


def check_dtype(dtype: Any) -> None:
    """Raises InvalidConfig for what from_pretrained does not accept either, such as strings with a leading "torch.",
    and for dtypes per module."""
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if dtype is not None and name != "auto" and name not in DECODED_DTYPES:
        raise InvalidConfig(f'dtype is {name}; choose "auto" or one of {", ".join(DECODED_DTYPES)}')


def check_attention(attention: object) -> None:
    """Raises InvalidConfig unless `attention` is a name, or a mapping from part of the model to name."""
    if attention is None or isinstance(attention, str):
        return
    if isinstance(attention, Mapping) and all(
        isinstance(text, str) for pair in attention.items() for text in pair
    ):
        return
    message = f"attn_implementation is {shown(attention)}; pass a string, such as sdpa or eager"
    raise InvalidConfig(message)


def check_subfolder(subfolder: object) -> None:
    """Raises InvalidConfig unless `subfolder` is a path within the dataset; "" is the dataset itself."""
    if not isinstance(subfolder, str):
        raise invalid("subfolder", "must be a string, such as text_encoder")
    path = PurePosixPath(subfolder)
    if path.is_absolute() or ".." in path.parts:
        raise invalid("subfolder", "must be a path within the dataset, such as text_encoder")


def check_patterns(key: str, patterns: Any) -> None:
    """Raises InvalidConfig, naming `key`, unless `patterns` is a list of patterns."""
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise invalid(key, "must be a list of words, globs or /regexes/")
    for pattern in patterns:
        check_pattern(key, pattern)
