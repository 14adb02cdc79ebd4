"""Tensors named like codes and scales, of any shape and dtype, are decoded or kept, or are one clear error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.dtypes import BY_SAFETENSORS
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.checkpoint_files import entry, read_all, safetensors_bytes
from tests.plan.plan_bytes import read_again, written

Entries = dict[str, tuple[str, list[int]]]
SOUND: list[Entries] = [
    {"a.weight": ("F8_E4M3", [4, 64]), "a.weight_scale_inv": ("F32", [1, 1])},
    {"a.weight": ("F8_E5M2", [2, 4, 64]), "a.weight_scale": ("BF16", [2, 4, 1])},
    {"a.weight": ("I8", [4, 64]), "a.weight_scale": ("F32", [4, 2]), "a.weight_zero_point": ("I8", [4, 2])},
    {"a.weight": ("U8", [4, 32]), "a.scale": ("F8_E8M0", [4, 2])},
    {
        "a.weight_packed": ("I32", [4, 1]),
        "a.weight_shape": ("I32", [2]),
        "a.weight_scale": ("F32", [4, 1]),
        "a.weight_zero_point": ("I32", [1, 1]),
        "a.weight_g_idx": ("I32", [4]),
    },
    {"e_blocks": ("U8", [2, 4, 2, 16]), "e_scales": ("U8", [2, 4, 2])},
    {"a.weight": ("U8", [4, 32]), "a.weight_scale": ("F8_E4M3", [4, 4]), "a.weight_scale_2": ("F32", [])},
    {
        "a.weight_packed": ("U8", [4, 32]),
        "a.weight_scale": ("F8_E4M3", [4, 4]),
        "a.weight_global_scale": ("F32", [1]),
        "a.input_global_scale": ("F32", [1]),
    },
    {"e": ("U8", [2, 16, 4]), "e_weight_scale": ("F8_E4M3", [2, 2, 4]), "e_weight_scale_2": ("F32", [2])},
    {
        "a.weight": ("F8_E4M3", [4, 32]),
        "a.scale_weight": ("F32", []),
        "a.comfy_quant": ("U8", [4]),
        "scaled_fp8": ("F8_E4M3", [2]),
        "k_scale": ("F32", []),
    },
    {"a.W_q": ("U8", [4, 32]), "a.scale": ("BF16", [4, 1]), "a.zero": ("BF16", [4, 1])},
    {"a.weight": ("U8", [64, 1]), "a.weight.absmax": ("F32", [2]), "a.weight.quant_map": ("F32", [16])},
    {"a.indices": ("I32", [1, 4]), "a.centroids.weight": ("BF16", [4, 4])},
    {"e.blocks": ("U8", [2, 4, 2, 16]), "e.scales": ("U8", [2, 4, 2]), "e_blocks": ("U8", [1, 1, 1, 16])},
]
NAMES = sorted({name for model in SOUND for name in model} | {"e", "a.weight_g_idx"})
DTYPES = ["F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "I64", "F32", "BF16", "F8_E8M0"]
SHAPES = st.one_of(
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 32, 64]), max_size=4),
    st.sampled_from(
        [[4, 64], [4, 32], [4, 8], [4, 2], [4, 1], [1, 2], [4], [1], [2], [2, 4, 2, 16], [2, 4, 2]]
    ),
)
SCHEMES = st.fixed_dictionaries(
    {"num_bits": st.sampled_from([2, 4, 8]), "symmetric": st.booleans()},
    optional={"group_size": st.sampled_from([-1, 32]), "block_structure": st.sampled_from([[2, 32], "4x4"])},
)


@st.composite
def models(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """(a safetensors file, its config.json)."""
    entries = dict(draw(st.sampled_from(SOUND)))
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        dtype, shape = entries.pop(name, ("F32", [4, 1]))
        change = draw(st.sampled_from(["gone", "dtype", "shape"]))
        if change != "gone":
            entries[name] = (
                (draw(st.sampled_from(DTYPES)), shape) if change == "dtype" else (dtype, draw(SHAPES))
            )
    header: dict[str, Any] = {}
    stop = 0
    for name, (dtype, shape) in entries.items():
        nbytes = math.prod(shape) * BY_SAFETENSORS[dtype].itemsize
        header[name] = entry(dtype, shape, stop, stop + nbytes)
        stop += nbytes
    groups = {"g": {"targets": ["Linear"], "weights": draw(SCHEMES)}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    small = b"\4\0\0\0" if draw(st.booleans()) else bytes([draw(st.integers(0, 255))])
    data = (small * stop)[:stop]  # so that int32 values may be small numbers, and a shape one that fits
    return safetensors_bytes(header, data), draw(st.sampled_from([config, {"quant_method": "fp8"}, {}]))


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=models())
def test_any_names_shapes_and_dtypes_end_in_layers_or_in_one_error(
    tmp_path: Path, model: tuple[bytes, dict[str, Any]]
) -> None:
    data, quantization = model
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    try:
        checkpoint = open_checkpoint(str(tmp_path))
        values = read_all(checkpoint)
    except InvalidCheckpoint:
        return
    event("decoded" if checkpoint.decoded else "kept")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    made = {layer.name for layer in checkpoint.layers if layer.name in checkpoint.decoded.values()}
    assert {*values, *checkpoint.aliases, *checkpoint.decoded, *checkpoint.left_out} == {*header, *made}
    assert all(len(values[layer.name]) == layer.source_nbytes for layer in checkpoint.layers)
    config = QuantizationConfig(unscaled_float8=["*"] if checkpoint.unscaled else [])
    plan = make_plan(checkpoint, config, RunConfig())
    assert read_again(written(plan)) == plan
