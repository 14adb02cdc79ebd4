"""Scales of activations and of the key-value cache, and markers: tensors beside decoded weights that the
full-precision model does not have.

Names alone would catch a model's own parameters: a `logit_scale`, the `scale` of a norm. So a tensor is left out only
if the weight that it belongs to was decoded, and only under a name that quantizers use and models do not. What is
unclear is kept, and a note names it.
"""

from __future__ import annotations

from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.names import WEIGHT
from arrowquant_dist.checkpoint.quantized.tensors import Tensors
from arrowquant_dist.checkpoint.table import Layer

LEFT_OUT = "as it only served to run the quantized model"
UNCLEAR = "scales beside decoded weights, of which it is not clear what they are for"
# In the module M of a decoded M.weight; beside fused experts X they are X_input_scale, X_act_scale …
_OF_WEIGHTS = (
    *(
        "input_scale",
        "input_scale_inv",
        "input_scale_ub",
        "input_global_scale",
        "input_zero_point",
        "input_amax",
    ),
    *(
        "output_scale",
        "output_global_scale",
        "output_zero_point",
        "output_amax",
        "scale_input",
        "scale_output",
    ),
    *("activation_scale", "activation_zero_point", "input_activation_scale", "output_activation_scale"),
    *(
        "act_scale",
        "activation_scaling_factor",
        "qscale_act",
        "weight_scalar",
        "weight_zero_point",
        "comfy_quant",
        "q_scale",
        "k_scale",
        "v_scale",
    ),
)
# In an attention module whose projections were decoded, or in a submodule of it.
_OF_ATTENTION = (
    *("q_scale", "k_scale", "v_scale", "kv_scale", "k_cache_scale", "v_cache_scale", "kv_cache_scale"),
    "kv_cache_scaling_factor",
    *("k_zero_point", "v_zero_point", "prob_output_scale", "qscale_act"),
)
_MARKERS = ("scaled_fp8",)  # ComfyUI's, for a whole file
_ENDINGS = tuple({*_OF_WEIGHTS, *_OF_ATTENTION, *_MARKERS})
_UNCLEAR_ENDINGS = ("scale", "scales", "scale_inv", "zero_point", "zero_points", "amax")
_CACHE_KEYS = ("kv_cache_scheme", "kv_cache_quant_algo")  # with these keys, a config has scales for each head


def leave_out_scales(tensors: Tensors, config: ModelConfig) -> None:
    """Leaves out what belongs to layers that were decoded, and keeps what may belong to them byte for byte."""
    made = [layer.name for layer in tensors.layers.values()]
    if not made:
        return
    beside = _beside(made)
    attention = {name.removesuffix(WEIGHT).rpartition(".")[0] for name in made if name.endswith(WEIGHT)} - {
        ""
    }
    has_heads = any(config.quantization.get(key) for key in _CACHE_KEYS)
    for tensor in tensors.by_name.values():
        if not tensor.name.endswith(_UNCLEAR_ENDINGS + _ENDINGS) or not tensors.is_free(tensor.name):
            continue
        if _has_name(tensor.name, _MARKERS) or _belongs(tensor.name, _OF_WEIGHTS, beside):
            tensors.leave_out([tensor.name], LEFT_OUT)
        elif _is_of_attention(tensor.name, attention):
            is_clear = tensor.num_params == 1 or has_heads
            (tensors.leave_out if is_clear else tensors.keep)(
                [tensor.name], LEFT_OUT if is_clear else UNCLEAR
            )
        elif _may_belong(tensor, beside):
            tensors.keep([tensor.name], UNCLEAR)


def _beside(made: list[str]) -> set[str]:
    """The prefixes of the names of tensors that belong to these layers."""
    found = {name.removesuffix(WEIGHT) + "." for name in made if name.endswith(WEIGHT)}
    for name in made:
        if not name.endswith(WEIGHT):
            found |= {f"{name}_", f"{name}.", f"{name.removesuffix('_weight')}_"}
    return found


def _belongs(name: str, endings: tuple[str, ...], beside: set[str]) -> bool:
    return any(name.endswith(ending) and name.removesuffix(ending) in beside for ending in endings)


def _has_name(name: str, known: tuple[str, ...]) -> bool:
    return name.rpartition(".")[2] in known


def _is_of_attention(name: str, attention: set[str]) -> bool:
    """Whether the name is like self_attn.k_scale, self_attn.attn.k_scale or attention.kv_fake_quantizer.qscale_act."""
    module = name.rpartition(".")[0]
    return _has_name(name, _OF_ATTENTION) and (module in attention or module.rpartition(".")[0] in attention)


def _may_belong(tensor: Layer, beside: set[str]) -> bool:
    """Whether the tensor is named like a scale of a decoded layer: by its module, or by the beginning of its name."""
    module, dot, last = tensor.name.rpartition(".")
    if f"{module}{dot}" in beside and last.endswith(_UNCLEAR_ENDINGS):
        return True
    return any(
        f"{tensor.name[:at]}_" in beside for at, character in enumerate(tensor.name) if character == "_"
    ) and last.endswith(_UNCLEAR_ENDINGS)
