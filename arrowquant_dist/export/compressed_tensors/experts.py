"""Unfuses the experts of a block, which a source has in two tensors, into the Linear layers that vLLM expects.

`….experts.gate_up_proj` [experts, 2 · out, in] becomes `….experts.{i}.gate_proj.weight` and `….up_proj.weight`, and
`….experts.down_proj` [experts, out, in] becomes `….experts.{i}.down_proj.weight`. Their rows are V2's rows, so codes
can be kept. If a family has [experts, in, 2 · out], groups and scales run along the wrong axis, and only decoded values
can be written; for Llama 4 also expert by expert, since transformers accepts nothing else from a checkpoint of codes.
If a family interleaves gate and up (gpt-oss), or uses other names, no reader would find them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FUSED = re.compile(r".*\.experts\.(?P<own>gate_up_proj|down_proj)(?:\.weight)?")
_GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
_W1_W3_W2 = ("w1", "w3", "w2")

# The names of an expert's own matrices in each family: gate, up, down.
_NAMES: Mapping[str, tuple[str, str, str]] = {
    **dict.fromkeys(
        ("afmoe", "axk1", "bailing_hybrid", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32",
         "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe",
         "glm4v_moe_text", "glm_moe_dsa", "hunyuan_v1_moe", "hy_v3", "jamba", "kimi_k25", "llama4",
         "llama4_text", "longcat_flash", "mimo_v2_flash", "olmoe", "qwen2_moe", "qwen3_5_moe",
         "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text",
         "qwen3_vl_moe", "qwen3_vl_moe_text", "sarvam_moe", "solar_open"),
        _GATE_UP_DOWN,
    ),
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2", "phimoe"), _W1_W3_W2),
}  # fmt: skip
_TURNED = ("llama4", "llama4_text")  # families whose fused experts transformers replaces when it loads codes
# What these families' checkpoints call the block that transformers 5 calls `mlp` in memory, with fused experts.
_BLOCKS = dict.fromkeys(("mixtral", "minimax", "minimax_m2", "phimoe"), "block_sparse_moe")


@dataclass(frozen=True, slots=True)
class Expert:
    """One matrix of one expert: rows [row_start, row_stop) of the fused tensor."""

    name: str
    shape: tuple[int, int]
    row_start: int
    row_stop: int


def is_fused(name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether the tensor may hold matrices of several experts."""
    return len(shape) == 3 and "experts" in name


def why_not_unfused(
    name: str, row_dims: int, model_type: str, shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Returns why fused experts cannot be taken apart, or None if they can. shapes: those of all layers, by name."""
    found = _FUSED.fullmatch(name)
    if model_type not in _NAMES or found is None:
        return f"fused experts, and it is not known how vLLM stores them for {model_type or 'this model'}"
    neighbours = {own: shapes.get(name.replace(found["own"], own)) for own in ("gate_up_proj", "down_proj")}
    gate_up, down = neighbours["gate_up_proj"], neighbours["down_proj"]
    if gate_up is None or down is None:
        return "fused experts without the other half, gate_up_proj or down_proj"
    experts, hidden, inner = down
    if gate_up != (experts, 2 * inner, hidden):
        return "fused experts that are stored transposed, [experts, in, out], so that scales run along the wrong axis"
    return None if row_dims == 2 else "fused experts with one scale for rows of several experts"


def unfused(name: str, shape: tuple[int, ...], model_type: str) -> list[Expert]:
    """Returns the matrices of a tensor that can be taken apart, expert by expert."""
    block, _, own = name.removesuffix(".weight").rpartition(".")
    gate, up, down = _NAMES[model_type]
    parts = (down,) if own == "down_proj" else (gate, up)
    experts, rows, columns = shape
    height = rows // len(parts)
    return [
        Expert(f"{block}.{i}.{part}.weight", (height, columns), start, start + height)
        for i in range(experts)
        for part, start in ((part, i * rows + j * height) for j, part in enumerate(parts))
    ]


def turned_modules(name: str, model_type: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Returns the modules that an expert of a tensor [experts, in, modules · out] becomes, each transposed and decoded;
    () if readers take the tensor as it is. shapes: as in `why_not_unfused`."""
    found = _FUSED.fullmatch(name)
    if model_type not in _TURNED or found is None:
        return ()
    gate_up, down = (shapes.get(name.replace(found["own"], own)) for own in ("gate_up_proj", "down_proj"))
    if gate_up is None or down is None or gate_up != (down[0], down[2], 2 * down[1]):
        return ()
    return ("down_proj",) if found["own"] == "down_proj" else ("gate_proj", "up_proj")


def block_renamed(name: str, model_type: str) -> str:
    """Returns the name that a layer has in the family's checkpoints, for a model whose experts were fused."""
    block = _BLOCKS.get(model_type)
    return name if block is None else re.sub(r"\.mlp\.(?=experts\.|gate\.)", f".{block}.", name)
