"""How a text is split before byte pairs are merged: llama.cpp has these rules compiled in, under names.

A name stands for a rule that equals that of tokenizer.json step by step, and for whether whole words of the vocabulary
are taken without merging. Any other rule would silently give other tokens, and is refused.
"""

from __future__ import annotations

from typing import Any

from arrowquant_dist.config.checks import shown
from arrowquant_dist.export.gguf.settings import Settings

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"

# (steps, ignore_merges) → tokenizer.ggml.pre
_NAMES: dict[tuple[tuple[tuple[str, ...], ...], bool], str] = {
    ((("bytes", "by words"),), False): "gpt-2",
    ((("digits",), ("bytes", "by words")), False): "smollm",
    ((("split", _LLAMA3), ("bytes",)), True): "llama-bpe",
    ((("split", _LLAMA3), ("bytes",)), False): "smaug-bpe",
    ((("split", _QWEN2), ("bytes",)), False): "qwen2",
}


def pre_tokenizer_name(tokenizer: Settings, model: Settings) -> str:
    """Returns llama.cpp's name of the rule. tokenizer: tokenizer.json. model: its `model`, of byte pairs. Raises
    InvalidCheckpoint if no name is known here for such a rule."""
    steps = tuple(_step(step) for step in _sequence(tokenizer))
    name = _NAMES.get((steps, model.yes("ignore_merges", default=False)))
    if name is None:
        raise tokenizer.unknown(f"the pre_tokenizer {shown(tokenizer.fields.get('pre_tokenizer'))}")
    return name


def _sequence(tokenizer: Settings) -> list[Any]:
    rule = tokenizer.fields.get("pre_tokenizer")
    if isinstance(rule, dict) and rule.get("type") == "Sequence":
        steps = rule.get("pretokenizers")
        return steps if isinstance(steps, list) else [steps]
    return [rule]


def _step(step: Any) -> tuple[str, ...]:
    """Returns one step without options that change no token (`trim_offsets`), or ("unknown",) for an unknown kind or
    option."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            return ("bytes", "by words") if rest.get("use_regex", True) else ("bytes",)
        case {"type": "Digits", "individual_digits": True}:
            return ("digits",)
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            return ("split", regex)
    return ("unknown",)
