"""Formats that are known and not decoded: which tensors of a module they are recognized by.

Codes, scales, codebooks and whatever else such a module has stay byte for byte: each of them means something in the
light of the others alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """has: names that a module of that format has, all of them, codes first; one that ends with a dot begins a name.
    below: modules in it that belong to it, of which it has one at least where there are any. may_be_floats: the bytes
    of the codes may be stored as those of floats, which some trainers ask for."""

    name: str
    has: tuple[str, ...]
    below: tuple[str, ...] = ()
    may_be_floats: bool = False


_DATA = "_data"  # of a tensor of torch that is a class of quanto's
# The first one that fits counts.
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
    # Weights that were divided by a scale of their inputs, or have a part beside their codes.
    Format("ModelOpt (AWQ)", ("weight", "weight_scale", "pre_quant_scale")),
    Format("ModelOpt (SVDQuant)", ("weight", "weight_scale", "svdquant_lora_a")),
    Format("SDNQ", ("weight", "scale", "svd_up")),
    Format("torchao (AWQ)", ("_weight_qdata", "_weight_act_pre_scale")),
)

# Of these, whatever is not decoded is none of theirs, or was refused.
DECODED_METHODS = ("compressed-tensors", "fbgemm_fp8", "fp8", "mxfp4", "mxfp8")

# {quant_method of a config.json: how people call it} of methods of which not every format is decoded.
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
