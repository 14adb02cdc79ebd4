"""NVFP4 weights become layers with the values that compressed-tensors and plain numpy decode them to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.encodings.nvfp4 import Nvfp4
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import (
    Tensors,
    assert_equal,
    assert_slices,
    float8,
    save_model,
    values_of,
)
from tests.datasets import weights_of
from tests.plan.plan_bytes import read_again, written

MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
GROUP = {
    "targets": ["Linear"],
    "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "config_groups": {"g": GROUP},
}
# Of a code: its sign, two bits of exponent, one of mantissa.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def codes(*shape: int) -> torch.Tensor:
    """Every pair, where there is room."""
    return (torch.arange(int(np.prod(shape))) * 7919 % 256).to(torch.uint8).reshape(shape)


def small(*shape: int) -> torch.Tensor:
    """Scales: no signs."""
    return float8(*shape).float().abs().add(0.25).to(torch.float8_e4m3fn)


def decoded(packed: torch.Tensor, effective: np.ndarray, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """packed: […, columns / 2], low four bits first. effective: float32 […, columns / 16]. Rounded once."""
    pairs = packed.numpy()
    values = np.stack([E2M1[pairs & 15], E2M1[pairs >> 4]], -1).reshape(*pairs.shape[:-1], -1)
    return torch.from_numpy(values * effective.repeat(16, -1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(130, 48), (1, 8), (3, 34, 24)])
def test_modelopt_s_scales_are_multiplied(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    packed, scale = codes(*shape), small(*shape[:-1], shape[-1] // 8)
    shared = torch.tensor(0.0123) if len(shape) == 2 else torch.tensor([0.01, 0.02, 0.5])
    name = str(dtype).removeprefix("torch.")
    tensors = {"a.weight": packed, "a.weight_scale": scale, "a.weight_scale_2": shared}
    checkpoint = save_model(tmp_path, tensors, MODELOPT, torch_dtype=name)
    effective = scale.float().numpy() * shared.numpy().reshape(-1, *([1] * (len(shape) - 1))).astype(
        np.float32
    )
    expected = decoded(packed, effective.reshape(*shape[:-1], -1), dtype)
    assert_equal(values_of(checkpoint)["a.weight"], expected)
    assert checkpoint.decoded == {"a.weight_scale": "a.weight", "a.weight_scale_2": "a.weight"}


@pytest.mark.parametrize("shape", [(130, 48), (1, 8)])
def test_compressed_tensors_scales_are_divided(tmp_path: Path, shape: tuple[int, int]) -> None:
    packed, scale, shared = codes(*shape), small(shape[0], shape[1] // 8), torch.tensor([2304.5])
    state = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": shared}
    tensors = {f"a.{key}": tensor for key, tensor in state.items()}
    found = values_of(save_model(tmp_path, tensors, COMPRESSED))
    assert found.keys() == {"a.weight"}
    assert_equal(found["a.weight"], decoded(packed, scale.float().numpy() / shared.numpy()))
    scheme = QuantizationScheme(**GROUP)
    library = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized").decompress(state, scheme)[
        "weight"
    ]
    torch.testing.assert_close(found["a.weight"].float(), library.float(), rtol=2**-7, atol=0)


def test_a_scale_of_a_weight_of_two_halves_of_an_expert_is_that_of_each_half(tmp_path: Path) -> None:
    packed, scale, shared = codes(3, 8, 16), small(3, 8, 2), torch.rand(3, 2) + 0.1
    tensors = {
        "m.experts.w13_weight": packed,
        "m.experts.w13_weight_scale": scale,
        "m.experts.w13_weight_scale_2": shared,
        "m.experts.w13_input_scale": torch.ones(3),
    }
    checkpoint = save_model(tmp_path, tensors, MODELOPT)
    effective = scale.float().numpy() * shared.numpy().repeat(4, 1)[..., None]
    assert_equal(values_of(checkpoint)["m.experts.w13_weight"], decoded(packed, effective))
    assert checkpoint.left_out.keys() == {"m.experts.w13_input_scale"}


@pytest.mark.parametrize("shared", [torch.tensor(0.25), torch.tensor([0.25, 0.5, 3.0])])
def test_experts_that_are_stored_as_the_model_has_them_are_packed_along_their_inputs(
    tmp_path: Path, shared: torch.Tensor
) -> None:
    """[experts, in / 2, out], scales [experts, in / 16, out]: those of Llama-4 and gpt-oss."""
    name = "m.experts.gate_up_proj"
    packed, scale = codes(3, 24, 40), small(3, 3, 40)
    tensors = {name: packed, f"{name}_weight_scale": scale, f"{name}_weight_scale_2": shared}
    checkpoint = save_model(tmp_path, {**tensors, f"{name}_input_scale": torch.ones(())}, MODELOPT)
    effective = scale.float().numpy().transpose(0, 2, 1) * shared.numpy().reshape(-1, 1, 1)
    turned = decoded(packed.transpose(1, 2).contiguous(), np.ascontiguousarray(effective))
    found = values_of(checkpoint)
    assert found.keys() == {name}
    assert found[name].shape == (3, 48, 40)
    assert_equal(found[name], turned.transpose(1, 2).contiguous())
    assert_slices(
        checkpoint, name, [(0, 0), (0, 1), (37, 41), (40, 80), (1910, 1930), (47 * 40, 49 * 40), (5719, 5760)]
    )


def test_any_slice_is_decoded_alone(tmp_path: Path) -> None:
    tensors = {
        "w.weight": codes(3, 10, 24),
        "w.weight_scale": small(3, 10, 3),
        "w.weight_scale_2": torch.rand(3) + 0.1,
    }
    checkpoint = save_model(tmp_path, tensors, MODELOPT)
    slices = [(0, 1440), (0, 0), (0, 1), (1439, 1440), (470, 490), (479, 481), (9 * 48, 11 * 48), (17, 991)]
    assert_slices(checkpoint, "w.weight", slices)


def test_codes_are_those_of_the_decoded_checkpoint_block_by_block_and_a_plan_remembers_it(
    tmp_path: Path,
) -> None:
    packed, scale, shared = codes(2, 600, 64), small(2, 600, 8), torch.tensor([0.01, 0.03])
    tensors = {"e.up": packed, "e.up_weight_scale": scale, "e.up_weight_scale_2": shared}
    rows = {
        "e.down": codes(2, 320, 160),
        "e.down_weight_scale": small(2, 40, 160),
        "e.down_weight_scale_2": shared.clone(),
    }
    checkpoint = save_model(tmp_path / "nvfp4", {**tensors, **rows}, MODELOPT)
    save_model(tmp_path / "bf16", values_of(checkpoint))
    config, run = (
        QuantizationConfig("int4", per_channel=False),
        RunConfig(engine="inline", block_bytes=64 << 10),
    )
    for name in ("nvfp4", "bf16"):
        quantize(str(tmp_path / name), str(tmp_path / f"{name}-int4"), config, run)
    assert weights_of(tmp_path / "nvfp4-int4") == weights_of(tmp_path / "bf16-int4")
    assert len(weights_of(tmp_path / "nvfp4-int4")) > 3
    plan = make_plan(checkpoint, config, run)
    assert read_again(written(plan)) == plan
    assert "decoded from NVFP4 codes and scales to bfloat16: 2 layers" in plan.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a.weight_scale": small(4, 3)},
            r"layer 'a.weight_scale'.*\[4, 3\] do not fit as scales for each 16",
        ),
        (
            {"a.weight_scale_2": torch.ones(4, 2)},
            r"layer 'a.weight_scale_2'.*does not fit as the scale that those of a.weight share",
        ),
        ({"a.weight_scale_2": torch.ones(1, dtype=torch.int32)}, "int32 does not fit as the scale"),
        (
            {"a.weight_scale": (-small(4, 2).float()).to(torch.float8_e4m3fn)},
            "some of its scales are negative",
        ),
        ({"a.weight_scale_2": torch.zeros(())}, "its scale is 0, but its codes are not all 0"),
    ],
)
def test_scales_that_do_not_fit_are_one_error(tmp_path: Path, change: Tensors, message: str) -> None:
    tensors = {"a.weight": codes(4, 16), "a.weight_scale": small(4, 2), "a.weight_scale_2": torch.ones(1)}
    with pytest.raises(InvalidCheckpoint, match=message):
        values_of(save_model(tmp_path, {**tensors, **change}, MODELOPT))


def test_codes_whose_global_scale_is_not_there_are_refused(tmp_path: Path) -> None:
    tensors = {"a.weight_packed": codes(4, 16), "a.weight_scale": small(4, 2)}
    with pytest.raises(InvalidCheckpoint, match=r"a\.weight_global_scale is missing"):
        save_model(tmp_path, tensors, COMPRESSED)


def test_a_slice_takes_memory_for_itself_alone(tmp_path: Path) -> None:
    tensors = {
        "w.weight": codes(4096, 64),
        "w.weight_scale": small(4096, 8),
        "w.weight_scale_2": torch.ones(1),
    }
    checkpoint = save_model(tmp_path, tensors, MODELOPT)
    (layer,) = checkpoint.layers
    assert isinstance(layer.encoding, Nvfp4)
    some = layer.encoding.slice(layer, 128 * 100, 128 * 110)
    assert [found.stop - found.start for found in some.ranges] == [10 * 64, 10 * 8, 4]
    assert some.decoded_nbytes == 10 * 128 * 2
    assert some.beside_nbytes == 2 * 4 * 10 * 8 + 10 * (24 + 24)
    with SourceReader(files=checkpoint.files) as reader:
        assert len(reader.read([(layer, 128 * 100, 128 * 110)])[0]) == 10 * 128 * 2
