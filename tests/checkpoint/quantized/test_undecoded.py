"""Codes that are not decoded stay byte for byte, with everything that belongs to them, and the plan names the
format."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import Tensors, assert_equal, float8, save_model, values_of

U8, I8, I16, I32 = torch.uint8, torch.int8, torch.int16, torch.int32


def ints(*shape: int, dtype: torch.dtype = I32) -> torch.Tensor:
    return (torch.arange(int(torch.tensor(shape).prod())) % 100).to(dtype).reshape(shape)


def floats(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))).half()


FORMATS: dict[str, Tensors] = {
    "HQQ": {
        "W_q": ints(32, 64, dtype=U8),
        "scale": floats(64, 32),
        "zero": floats(64, 32),
        "meta_shape": ints(2),
        "bias": floats(64),
    },
    "SINQ": {"W_q": ints(32, 64, dtype=U8), "meta": ints(90, dtype=U8), "bias": floats(64)},
    "bitsandbytes (4 bits)": {
        "weight": ints(512, 1, dtype=U8),
        "weight.absmax": ints(16, 4, dtype=U8),
        "weight.quant_map": floats(16, 4),
        "weight.nested_absmax": floats(4, 4),
        "weight.nested_quant_map": floats(256, 2),
        "weight.quant_state.bitsandbytes__nf4": ints(90, dtype=U8),
    },
    "EXL2": {
        "q_weight": ints(8, 64),
        "q_scale": ints(8, 8),
        "q_scale_max": floats(8, 2),
        "q_groups": ints(16, dtype=I16),
        "q_invperm": ints(64, dtype=I16),
    },
    "EXL3": {
        "trellis": ints(4, 4, 64, dtype=I16),
        "suh": floats(64, 2),
        "svh": floats(64, 2),
        "mcg": ints(1),
    },
    "AQLM": {
        "codes": ints(16, 8, 2, dtype=I8),
        "codebooks": floats(2, 256, 1, 8),
        "scales": floats(16, 1, 1, 1),
    },
    "VPTQ": {
        "indices": ints(1, 16, 8),
        "centroids.weight": floats(256, 8),
        "res_centroids.weight": floats(256, 8),
        "weight_scale": floats(64, 4),
        "perm": ints(64, dtype=I16),
    },
    "QuIP#": {"Qidxs": ints(16, 8).long(), "SU": floats(64, 2), "SV": floats(16, 2), "codebook_id": ints(1)},
    "SpQR": {
        "dense_weights": ints(64).long(),
        "row_offsets": ints(17),
        "col_vals": ints(9),
        "scales": floats(8, 8),
    },
    "HIGGS": {
        "weight": ints(16, 8),
        "scales": floats(16, 8),
        "tables": floats(16, 8),
        "tables2": floats(16, 16),
    },
    "Marlin": {"B": ints(4, 128), "s": floats(4, 64)},
    "SVDQuant": {
        "qweight": ints(64, 32, dtype=I8),
        "wscales": floats(4, 64),
        "proj_down": floats(64, 8),
        "smooth_factor": floats(64, 2),
    },
    "quanto": {
        "weight._data": ints(16, 8, dtype=I8),
        "weight._scale": floats(16, 4),
        "input_scale": floats(2, 2),
    },
    "ModelOpt (AWQ)": {
        "weight": ints(16, 8, dtype=U8),
        "weight_scale": float8(16, 1),
        "weight_scale_2": torch.ones(()),
        "pre_quant_scale": floats(4, 4),
    },
    "an unknown format": {
        "weight": ints(16, 8, dtype=U8),
        "weight_scale": floats(16, 2),
        "other": floats(4, 4),
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_codes_and_all_that_belongs_to_them_stay_byte_for_byte(tmp_path: Path, name: str) -> None:
    tensors = {f"model.layers.0.q_proj.{last}": tensor for last, tensor in FORMATS[name].items()}
    checkpoint = save_model(tmp_path / "source", {**tensors, "lm_head.weight": floats(64, 64)})
    assert checkpoint.kept == dict.fromkeys(tensors, f"codes of {name}, which can't be decoded")
    plan = make_plan(checkpoint, QuantizationConfig("int2"), RunConfig())
    specs = {block.layer.name: block.spec.quant_type for block in plan.blocks}
    assert specs == {**dict.fromkeys(tensors, "none"), "lm_head.weight": "int2"}
    assert any(
        f"codes of {name}, which can't be decoded; they stay byte for byte" in note for note in plan.notes
    )
    found = values_of(checkpoint)
    for key, tensor in tensors.items():
        assert_equal(found[key], tensor)


def test_a_dataset_of_such_a_source_has_the_same_bytes_and_its_config_as_it_is(tmp_path: Path) -> None:
    tensors = {f"a.{last}": tensor for last, tensor in FORMATS["HQQ"].items()}
    quantization = {"quant_method": "hqq", "quant_config": {"nbits": 4}}
    save_model(tmp_path / "source", tensors, quantization)
    quantize(
        str(tmp_path / "source"),
        str(tmp_path / "out"),
        QuantizationConfig("int2"),
        RunConfig(engine="inline"),
    )
    found = values_of(open_checkpoint(str(tmp_path / "out")))
    for name, tensor in tensors.items():
        assert_equal(found[name], tensor)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"quantization_config": quantization}


@pytest.mark.parametrize(
    ("method", "named"),
    [("bitnet", "BitNet"), ("eetq", "EETQ"), ("brand_new", "the unknown method 'brand_new'")],
)
def test_codes_that_only_look_like_some_are_named_by_the_config_s_method(
    tmp_path: Path, method: str, named: str
) -> None:
    tensors = {"a.weight": ints(16, 8, dtype=U8), "a.weight_scale": floats(4, 4), "b.weight": floats(4, 4)}
    checkpoint = save_model(tmp_path, tensors, {"quant_method": method})
    reason = f"codes of {named}, which can't be decoded"
    assert checkpoint.kept == {"a.weight": reason, "a.weight_scale": reason}


@pytest.mark.parametrize(
    "tensors",
    [
        {"attn.relative_position_index": ints(16, 16), "attn.logit_scale": floats(4, 4)},
        {"attn.bias": ints(8, 8, dtype=U8), "attn.k_scale": floats(4, 4)},
        {"attn.causal_mask": ints(8, 8, dtype=U8), "attn.scale": floats(4, 4)},
        {"counts": ints(8, 8), "proj.weight": floats(4, 4)},
    ],
)
def test_integers_of_models_that_are_not_quantized_are_no_codes(tmp_path: Path, tensors: Tensors) -> None:
    checkpoint = save_model(tmp_path, tensors)
    assert checkpoint.kept == {}
    assert checkpoint.notes == ()


def test_only_what_belongs_to_the_codes_stays_where_a_module_has_more(tmp_path: Path) -> None:
    tensors = {
        "experts.up_qweight": ints(2, 8, 8),
        "experts.up_scales": floats(2, 8, 2),
        "experts.up_other": floats(8, 8),
        "experts.router": floats(8, 8),
    }
    kept = save_model(tmp_path, tensors).kept
    assert kept.keys() == tensors.keys() - {"experts.router"}


@pytest.mark.parametrize(
    "beside",
    [
        {"weight_mx": floats(16), "weight_ry": floats(8, 2)},
        {"a": torch.ones(()), "b": torch.ones(())},
        {"lut": floats(16, 4)},
        {},
    ],
)
def test_integers_that_are_a_layer_s_weight_are_codes_whatever_is_beside_them(
    tmp_path: Path, beside: Tensors
) -> None:
    module = {
        f"att.key.{last}": tensor for last, tensor in {"weight": ints(16, 8, dtype=U8), **beside}.items()
    }
    checkpoint = save_model(tmp_path, {**module, "head.weight": floats(4, 4)}, {"quant_method": "bitnet"})
    assert checkpoint.kept == dict.fromkeys(module, "codes of BitNet, which can't be decoded")


def test_bitsandbytes_codes_of_fused_experts_stay_with_all_that_belongs_to_them(tmp_path: Path) -> None:
    codes = {
        "experts.up_proj": ints(512, 1, dtype=U8),
        "experts.up_proj.absmax": ints(16, 4, dtype=U8),
        "experts.up_proj.nested_absmax": floats(4, 4),
        "experts.up_proj.quant_map": floats(16, 4),
        "experts.up_proj.quant_state.bitsandbytes__nf4": ints(90, dtype=U8),
    }
    checkpoint = save_model(
        tmp_path, {**codes, "experts.down_proj": floats(2, 4, 4), "experts.bias": floats(4, 4)}
    )
    assert checkpoint.kept == dict.fromkeys(codes, "codes of bitsandbytes (4 bits), which can't be decoded")


FLOAT_CODES: dict[str, Tensors] = {
    "HQQ": {"W_q": floats(32, 64), "scale": floats(64, 32), "zero": floats(64, 32), "nbits": ints(1)},
    "bitsandbytes (4 bits)": {
        "weight": floats(16, 8),
        "weight.absmax": ints(16, 4, dtype=U8),
        "weight.quant_map": floats(16, 4),
        "weight.quant_state.bitsandbytes__nf4": ints(90, dtype=U8),
    },
}


@pytest.mark.parametrize("name", FLOAT_CODES)
def test_codes_may_be_stored_as_floats_of_whose_bytes_they_are(tmp_path: Path, name: str) -> None:
    module = {f"a.{last}": tensor for last, tensor in FLOAT_CODES[name].items()}
    checkpoint = save_model(tmp_path, {**module, "b.weight": floats(4, 4), "b.scale": floats(4, 4)})
    assert checkpoint.kept == dict.fromkeys(module, f"codes of {name}, which can't be decoded")


@pytest.mark.parametrize(
    "last", [["W_q", "W_k"], ["W_q", "scale"], ["codes", "codebooks"], ["weight", "scale"]]
)
def test_floats_of_a_plain_model_that_are_called_so_are_its_weights(tmp_path: Path, last: list[str]) -> None:
    checkpoint = save_model(tmp_path, {f"attn.{name}": floats(8, 8) for name in last})
    assert checkpoint.kept == {}


def test_float8_with_a_part_of_low_rank_beside_its_codes_is_not_decoded_without_it(tmp_path: Path) -> None:
    module = {
        "q.weight": float8(8, 8),
        "q.scale": floats(8, 1),
        "q.svd_up": floats(8, 2),
        "q.svd_down": floats(2, 8),
    }
    checkpoint = save_model(tmp_path, module, {"quant_method": "sdnq"})
    assert checkpoint.kept == dict.fromkeys(module, "codes of SDNQ, which can't be decoded")


def test_a_method_that_is_decoded_in_part_is_refused_since_no_config_describes_both(tmp_path: Path) -> None:
    tensors = {
        "a.weight": float8(4, 6),
        "a.weight_scale": torch.ones(()),
        **{f"b.{last}": tensor for last, tensor in FORMATS["ModelOpt (AWQ)"].items()},
    }
    message = r"b\.weight.*can't be decoded \(codes of ModelOpt \(AWQ\).*a\.weight can: no config\.json"
    with pytest.raises(InvalidCheckpoint, match=message):
        save_model(tmp_path / "one", tensors, {"quant_method": "modelopt"})
    assert save_model(tmp_path / "none", tensors).decoded == {"a.weight_scale": "a.weight"}


def comfy(settings: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=U8)


NVFP4: Tensors = {
    "weight": ints(128, 32, dtype=U8),
    "weight_scale": float8(128, 4),
    "weight_scale_2": torch.ones(()),
}
MXFP8: Tensors = {"weight": float8(128, 128), "weight_scale": ints(128, 4, dtype=U8) + 100}


@pytest.mark.parametrize(("name", "tensors"), [("nvfp4", NVFP4), ("mxfp8", MXFP8)])
def test_comfyui_s_blocks_lie_in_the_order_of_a_gpu_and_stay(
    tmp_path: Path, name: str, tensors: Tensors
) -> None:
    stored = {f"blocks.0.q.{last}": tensor for last, tensor in tensors.items()}
    marked = {**stored, "blocks.0.q.comfy_quant": comfy({"format": name})}
    reason = f"codes of ComfyUI ({name}), which can't be decoded"
    assert save_model(tmp_path / "marked", marked).kept == dict.fromkeys(marked, reason)
    layers = {"model.diffusion_model.blocks.0.q": {"format": name}}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    (tmp_path / "header").mkdir()
    save_file(stored, tmp_path / "header" / "model.safetensors", metadata)
    assert open_checkpoint(str(tmp_path / "header")).kept == dict.fromkeys(stored, reason)
    assert save_model(tmp_path / "plain", stored).kept == {}


def test_comfyui_s_float8_is_like_anybody_s(tmp_path: Path) -> None:
    tensors = {"q.weight": float8(4, 6), "q.weight_scale": torch.full((), 0.5)}
    checkpoint = save_model(tmp_path, {**tensors, "q.comfy_quant": comfy({"format": "float8_e4m3fn"})})
    assert_equal(values_of(checkpoint)["q.weight"], (tensors["q.weight"].float() * 0.5).to(torch.bfloat16))
    assert checkpoint.left_out.keys() == {"q.comfy_quant"}


@pytest.mark.parametrize("marker", [b"", b"{", b"[1]", b"\xff\xfe", b"{" * 60_000])
def test_a_marker_that_says_nothing_is_that_of_an_unknown_format(tmp_path: Path, marker: bytes) -> None:
    data = torch.tensor(list(marker), dtype=U8)
    checkpoint = save_model(
        tmp_path, {"q.weight": float8(4, 6), "q.weight_scale": torch.ones(()), "q.comfy_quant": data}
    )
    assert checkpoint.decoded or checkpoint.kept


def test_rotations_that_run_with_the_model_are_refused(tmp_path: Path) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}}
    apply = [
        {"location": "weight_input", "targets": ["Linear"]},
        {"location": "input", "targets": ["Linear"]},
    ]
    transforms = {"config_groups": {"R": {"type": "hadamard", "apply": apply}}}
    tensors = {"a.weight_packed": ints(4, 1), "a.weight_scale": floats(4, 1)}
    with pytest.raises(InvalidCheckpoint, match="transform_config rotates activations"):
        save_model(tmp_path, tensors, {**config, "transform_config": transforms})


def test_a_header_that_is_no_json_object_is_not_believed(tmp_path: Path) -> None:
    """The safetensors reader refuses it first, with one error."""
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]")
    with pytest.raises(InvalidCheckpoint):
        open_checkpoint(str(tmp_path))
