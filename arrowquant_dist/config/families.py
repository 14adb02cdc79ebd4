"""Which parameters of known model families are not matrices of a product, told by their names.

Quantization is made for matrices that activations are multiplied with: the error of one code is one of many that a sum
averages out. Parameters that are exponentiated, added, looked up for a logit, or decide where a token goes, have no
such sum behind them (int2 of a state-space `A_log` is 183 % off in exp(A_log)), and they are a thousandth of a model's
bytes. They are kept byte for byte unless the config says otherwise. Vectors are kept in any case (config.resolve).

Linear layers, embeddings and convolutions of images and sound are what their names say, and are not listed here. A
`gate` is a router only where there are experts beside it.

Source of the names: state dicts of transformers 5, and of the published checkpoints of mamba_ssm, VMamba, RWKV 4 to 7,
flash-linear-attention, StripedHyena, S4, CLIP, ViT, Swin, DiT, mistral-inference and Megatron.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

_STATE_SPACE = "state-space parameter"
_RECURRENCE = "recurrence parameter"
_SHORT_CONVOLUTION = "short convolution"
_ROUTER = "MoE router"
_LOGIT_BIAS = "relative-position bias"
_POSITIONS = "learned positions or tokens"
_ROTARY = "position table"
_MASK = "mask"
_BIAS = "bias"
_SCALE = "scale"
_NORM = "norm"

# Parameters whose name does not end with `.weight`, by the last part of their name.
_PARAMETERS = {
    **dict.fromkeys(
        ("A_log", "A_logs", "A_real", "A_imag", "log_A_real", "inv_A_real", "inv_w_real", "w_imag", "log_dt", "inv_dt",
         "Ds", "dt_bias", "log_poles", "poles", "residues"),
        _STATE_SPACE,
    ),
    **dict.fromkeys(
        ("time_decay", "time_first", "time_faaaa", "time_maa_x", "time_maa_w", "time_maa_k", "time_maa_v", "time_maa_r",
         "time_maa_g", "x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "r_k", "k_k", "k_a", "lower_bounds", "diagonal_decay",
         "query_decay", "key_decay", "decay_factor", "damping_factor", "ema_expansion_matrix",
         "kernel_projection_matrix"),
        _RECURRENCE,
    ),
    "short_filter_weight": _SHORT_CONVOLUTION,
    **dict.fromkeys(
        ("relative_position_bias_table", "relative_coords_table", "attention_biases", "rel_pos_h", "rel_pos_w",
         "emb_rel_k", "emb_rel_v"),
        _LOGIT_BIAS,
    ),
    **dict.fromkeys(
        ("pos_embed", "pos_embed_window", "decoder_pos_embed", "pos_embedding", "pos_embeddings",
         "position_embedding", "position_embeddings", "position_embedding_table", "positional_embedding",
         "positional_embeddings", "positional_embedding_vlm", "position_enc", "time_embeddings", "temporal_embedding",
         "temporal_embeddings", "mid_position_embeddings", "memory_temporal_positional_encoding", "class_embedding",
         "cls_token", "cls_tokens",
         "class_token", "cls_register_token", "dist_token", "distillation_token", "mask_token", "mask_tokens",
         "register_tokens", "reg_token", "storage_tokens", "detection_tokens", "group_token", "query_tokens", "query",
         "probe", "latents", "latents_1d", "latents_2d", "latent_query", "pos_idx_to_embed", "text_prompt",
         "memory_tokens", "meta_tokens", "level_embed", "seg_embed",
         "scale_shift_table", "modulation"),
        _POSITIONS,
    ),
    **dict.fromkeys(
        ("inv_freq", "original_inv_freq", "freqs", "freqs_cis", "freqs_cos", "freqs_sin", "cos_cached", "sin_cached",
         "embed_positions"),
        _ROTARY,
    ),
    **dict.fromkeys(("mask", "tril"), _MASK),
    **dict.fromkeys(("bias_u", "bias_v", "pos_bias_u", "pos_bias_v"), _BIAS),
    **dict.fromkeys(("scale", "logit_scale", "layer_scale", "lambda1", "lambda_1", "lambda_2"), _SCALE),
}  # fmt: skip
_PARAMETER_ENDS = {"bias": _BIAS, "_biases": _BIAS, "_mask": _MASK, "_log": _STATE_SPACE}

# Parameters whose name ends with `.weight`, by the part before it.
_WEIGHTS = {
    **dict.fromkeys(
        ("conv", "conv1d", "conv_1d", "q_conv1d", "k_conv1d", "v_conv1d", "short_conv", "shortconv", "short_filter"),
        _SHORT_CONVOLUTION,
    ),
    **dict.fromkeys(
        ("relative_attention_bias", "global_relative_attention_bias", "rel_pos_bias", "rel_pos_x_bias",
         "rel_pos_y_bias", "rel_attn_embed", "bias_values"),
        _LOGIT_BIAS,
    ),
    **dict.fromkeys(("shared_expert_gate", "shared_experts_gate"), _ROUTER),
    **dict.fromkeys(
        ("norm", "q_norm", "k_norm", "v_norm", "query_norm", "key_norm", "q_layernorm", "k_layernorm", "layer_norm",
         "layernorm", "LayerNorm", "input_layernorm", "post_attention_layernorm", "group_norm"),
        _NORM,
    ),
}  # fmt: skip
# Short names that mean something only within a certain module: (module, name).
_WITHIN = {
    **dict.fromkeys(
        ((module, name) for module in ("mixer", "mamba", "ssm", "s4", "s6", "kernel") for name in ("A", "D")),
        _STATE_SPACE,
    ),
    **dict.fromkeys((("kernel", name) for name in ("B", "C", "P", "Q")), _STATE_SPACE),
    **dict.fromkeys((("filter", name) for name in ("h", "gamma", "R", "p", "D")), _STATE_SPACE),
    ("gated_positional_embedding", "embedding"): _POSITIONS,
    ("sconv", "static_weight"): _SHORT_CONVOLUTION,
}  # fmt: skip
_GATED_CONVOLUTION = re.compile(r"(?:^|\.)layers\.\d+\.conv\.conv\.weight")  # of LFM2

_ROUTERS = re.compile(r"(?:^|\.)(?:gate|router|gate_weight|router_DE)(?=\.|$)")
_EXPERTS = re.compile(r"(?:^|\.)(?![^.]*shared)[^.]*experts?(?=[._]|$)")


class Described(Protocol):
    """The properties of a layer that are needed here."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Families:
    """Knows which of a checkpoint's layers are not matrices of a product.

    layers: all layers of the checkpoint, since a router is known by the experts beside it.

    Cost: a few dictionary look-ups a layer, and one pass over all names if any of them may be a router's.
    """

    def __init__(self, layers: Sequence[Described] = ()) -> None:
        self._layers = layers

    def why(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Why the layer is not a matrix of a product; None where it is one, or where its name is not known.

        shape: its shape, with at least two dimensions above 1.
        """
        if name.endswith(".weight"):
            module = name[name.rfind(".", 0, -7) + 1 : -7]
            known = _WEIGHTS.get(module)
            if known is _SHORT_CONVOLUTION and not _is_short_convolution(name, module, shape):
                known = None
            may_route = "gate." in name or "router." in name
        else:
            known, may_route = _of_parameter(name), True
        return _ROUTER if known is None and may_route and self._is_router(name, shape) else known

    def _is_router(self, name: str, shape: tuple[int, ...]) -> bool:
        gates = _ROUTERS.finditer(name)
        return any(self._has_experts(name[: gate.start()], shape) for gate in gates)

    def _has_experts(self, block: str, shape: tuple[int, ...]) -> bool:
        """Whether `block`, the part of the model that directly holds a gate of this shape, also holds experts."""
        if len(shape) != 2:
            return False
        if "moe" in block.rpartition(".")[2] or block in self._expert_blocks:
            return True
        stack = self._stacks.get(block, ())
        return any(_routes(stack, *pair) for pair in (shape, shape[::-1]))

    @cached_property
    def _expert_blocks(self) -> set[str]:
        """The blocks that directly hold experts: `layers.0.mlp` for `layers.0.mlp.experts.3.up_proj.weight`."""
        blocks = set()
        inside = "\0"  # no name begins with it
        for layer in self._layers:
            name = layer.name
            if name.startswith(inside):
                continue  # a neighbour of the last one
            at = name.find(".experts.")
            if at >= 0:
                blocks.add(name[:at])
                inside = name[: at + len(".experts.")]
            elif "expert" in name:
                found = _EXPERTS.search(name)
                if found is not None:
                    blocks.add(name[: found.start()])
        return blocks

    @cached_property
    def _stacks(self) -> dict[str, tuple[int, ...]]:
        """{block: shape} of three-dimensional layers: stacks of matrices, which may be experts that no name tells."""
        stacks: dict[str, tuple[int, ...]] = {}
        for layer in self._layers:
            if len(layer.shape) == 3:
                module = layer.name.removesuffix(".weight")
                stacks[module.rpartition(".")[0]] = layer.shape
        return stacks


def _of_parameter(name: str) -> str | None:
    """Why a parameter whose name does not end with `.weight` is kept; None where its name is not known."""
    module, _, last = name.rpartition(".")
    known = _PARAMETERS.get(last) or _WITHIN.get((module.rpartition(".")[2], last))
    if known is not None:
        return known
    for end, reason in _PARAMETER_ENDS.items():
        if last.endswith(end):
            return reason
    return _RECURRENCE if last.startswith("time_mix_") else None


def _is_short_convolution(name: str, module: str, shape: tuple[int, ...]) -> bool:
    """Whether the weight is a depthwise convolution over time: [channels, 1, taps]."""
    is_depthwise = len(shape) == 3 and shape[1] == 1
    return is_depthwise and (module != "conv" or _GATED_CONVOLUTION.search(name) is not None)


def _routes(stack: tuple[int, ...], experts: int, hidden: int) -> bool:
    """Whether a gate [experts, hidden] may choose among stacked matrices [experts, out, in] or [experts, in, out]."""
    return bool(stack) and experts == stack[0] and hidden in stack[1:] and experts < min(stack[1:])
