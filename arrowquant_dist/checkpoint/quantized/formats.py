"""Formats that are known but not decoded, and the tensors of a module by which they are recognized.

Codes, scales, codebooks and everything else in such a module stay byte for byte, since each has a meaning only
together with the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """A known format. has: names that a module of the format contains, all of them, codes first; one that ends with a
    dot is a prefix. below: submodules that belong to it; if any are given, it has at least one of them.
    may_be_floats: whether the bytes of the codes may be stored as floats, which some trainers require."""

    name: str
    has: tuple[str, ...]
    below: tuple[str, ...] = ()
    may_be_floats: bool = False


_DATA = "_data"  # the data of one of quanto's tensor subclasses
# The first one that matches counts.
FORMATS = (
    Format("SINQ", ("W_q", "meta")),
    Format("HQQ", ("W_q", "scale", "zero"), may_be_floats=True),
    Format("HQQ", ("W_q",)),
    Format("EXL2", ("q_weight", "q_scale")),
    Format("EXL3", ("trellis", "suh")),
    Format("QTIP", ("trellis",)),
    Format("AQLM", ("codes", "codebooks")),
    Format("VPTQ", ("indices",), ("centroids", "res_centroids", "outlier_centroids")),
    Format("QuIP#", ("Qidxs",)),
    Format("SpQR", ("dense_weights", "row_offsets")),
    Format("HIGGS", ("weight", "scales", "tables")),
    Format("FP-Quant", ("qweight", "forward_hadamard_matrix")),
    Format("SVDQuant", ("qweight", "wscales")),
    Format("QServe", ("qweight", "s1_scales")),
    Format("SqueezeLLM", ("qweight", "lookup_table")),
    Format("bitsandbytes (4 bits)", ("weight", "weight.quant_state."), may_be_floats=True),
    Format("bitsandbytes (4 bits)", ("weight", "weight.absmax", "weight.quant_map"), may_be_floats=True),
    Format("bitsandbytes (in blocks)", ("weight", "weight.absmax")),
    Format("quanto", (f"weight.{_DATA}",)),
    # Weights that were divided by a scale of their inputs, or have a component besides their codes.
    Format("ModelOpt (AWQ)", ("weight", "weight_scale", "pre_quant_scale")),
    Format("ModelOpt (SVDQuant)", ("weight", "weight_scale", "svdquant_lora_a")),
    Format("SDNQ", ("weight", "scale", "svd_up")),
    Format("torchao (AWQ)", ("_weight_qdata", "_weight_act_pre_scale")),
)

# Methods whose codes are all decoded or refused: what remains undecoded is not theirs.
DECODED_METHODS = ("compressed-tensors", "fbgemm_fp8", "fp8", "mxfp4", "mxfp8")

# {quant_method of a config.json: its usual name} of methods of which some formats are not decoded.
METHOD_LABELS: Mapping[str, str] = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "fouroversix": "FourOverSix",
    "fp_quant": "FP-Quant",
    "gemma": "Gemma's quantization",
    "gptq": "GPTQ",
    "gptq_marlin": "Marlin",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "marlin": "Marlin",
    "metal": "Metal",
    "modelopt": "ModelOpt",
    "quanto": "quanto",
    "quark": "Quark",
    "quip": "QuIP#",
    "sdnq": "SDNQ",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
