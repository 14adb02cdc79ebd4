"""The names that quantization libraries give the tensors beside a weight."""

from __future__ import annotations

WEIGHT = ".weight"
HALVES = "w13"  # vLLM's name for two matrices of an expert, one after the other
FACTOR = "weights_scaling_factor"  # TensorRT-LLM's
QDATA = "_qdata"  # in the names of torchao's tensors


def module_of(name: str) -> str:
    """The module that a tensor belongs to: `M` for `M.weight` and `M.scale`, and also for `M.weight.absmax`."""
    at = name.find(f"{WEIGHT}.")
    return name[:at] if at >= 0 else name.rpartition(".")[0]


def scale_names(codes: str) -> list[str]:
    """The names that the scales of float codes may have, usual names first. All of them are factors, x = code ·
    scale, even those called inverse: they are the inverse of what the quantizer multiplied by.

    X_scale_inv: DeepSeek and transformers; X_scale: compressed-tensors, ModelOpt, FBGEMM, Quark, vLLM. Beside
    M.weight also M.scale (DeepSeek's own code), M.scale_weight (ComfyUI, Intel's neural compressor), M.qscale_weight
    (Mistral) and M.weights_scaling_factor (TensorRT-LLM); for fused experts, whose codes are not an M.weight,
    X_weight_scale; for torchao's M._weight_qdata, M._weight_scale.
    """
    names = [f"{codes}_scale_inv", f"{codes}_scale"]
    if codes.endswith(WEIGHT):
        module = codes.removesuffix(WEIGHT)
        return [
            *names,
            *(f"{module}.{name}" for name in ("scale", "scale_weight", "qscale_weight", "scale_inv", FACTOR)),
        ]
    if codes.endswith(QDATA):
        return [codes.removesuffix(QDATA) + "_scale"]
    base = codes.removesuffix("_weight")
    for name in dict.fromkeys((codes, base)):
        names += [
            f"{name}_weight_scale_inv",
            f"{name}_weight_scale",
            f"{name}_scale_weight",
            f"{name}.weight_scale",
        ]
        names += [
            f"{name}_scale_inv",
            f"{name}_scale",
            f"{name}_qscale_weight",
            f"{name}.scale_weight",
            f"{name}.scale",
        ]
    return list(dict.fromkeys(names))


def decoded_name(codes: str) -> str:
    """The name in the full-precision release of the tensor that these codes stand for: M.weight for M._weight_qdata."""
    if not codes.endswith(QDATA):
        return codes
    parent, dot, last = codes.removesuffix(QDATA).rpartition(".")
    return f"{parent}{dot}{last.removeprefix('_')}"
