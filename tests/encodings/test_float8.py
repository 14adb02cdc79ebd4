"""float8 weights with scales become layers with the values they stand for, as torch and transformers decode them."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert import FP8BlockDequantizer
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import save_file

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidCheckpoint, UnquantizableWeights
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import (
    assert_equal,
    assert_slices,
    by_blocks,
    float8,
    save_model,
    scales,
    values_of,
)
from tests.datasets import weights_of
from tests.plan.plan_bytes import read_again, written

DEEPSEEK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
SHAPES = [(256, 384), (130, 200), (1, 7), (129, 128)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_scale_each_block_as_deepseek_has_it(
    tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, scale = float8(*shape, dtype=dtype), scales(-(-shape[0] // 128), -(-shape[1] // 128))
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale, "norm.weight": torch.ones(5)}
    checkpoint = save_model(tmp_path, tensors, DEEPSEEK)
    found = values_of(checkpoint)
    assert found.keys() == {"a.weight", "norm.weight"}
    assert checkpoint.decoded == {"a.weight_scale_inv": "a.weight"}
    assert_equal(found["a.weight"], by_blocks(weight, scale, 128, 128))


def test_the_values_are_those_of_the_field_s_own_converter(tmp_path: Path) -> None:
    tensors = {"a.weight": float8(300, 500), "a.weight_scale_inv": scales(3, 4)}
    expected = FP8BlockDequantizer(weight_block_size=(128, 128), targets=["a"]).process(dict(tensors))
    assert_equal(values_of(save_model(tmp_path, tensors, DEEPSEEK))["a.weight"], expected["a.weight"])


def test_codes_are_those_of_the_decoded_checkpoint(tmp_path: Path) -> None:
    weight, scale = float8(300, 500), scales(3, 4)
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale, "norm.weight": torch.ones(5)}
    save_model(tmp_path / "fp8", tensors, DEEPSEEK)
    decoded = {"a.weight": by_blocks(weight, scale, 128, 128), "norm.weight": torch.ones(5)}
    save_model(tmp_path / "bf16", decoded)
    config = QuantizationConfig("int4", per_channel=False)
    run = RunConfig(engine="inline", block_bytes=64 << 10)  # 65 rows: cut inside of scale blocks
    for name in ("fp8", "bf16"):
        quantize(str(tmp_path / name), str(tmp_path / f"{name}-int4"), config, run)
    assert weights_of(tmp_path / "fp8-int4") == weights_of(tmp_path / "bf16-int4")
    assert len(weights_of(tmp_path / "fp8-int4")) > 4


def test_object_storage_gives_the_same(tmp_path: Path) -> None:
    save_model(tmp_path / "fp8", {"a.weight": float8(300, 500), "a.weight_scale_inv": scales(3, 4)}, DEEPSEEK)
    fsspec.filesystem("memory").put(str(tmp_path / "fp8"), f"/{tmp_path.name}-fp8", recursive=True)
    run = RunConfig(engine="inline", block_bytes=64 << 10)
    for number, source in enumerate([str(tmp_path / "fp8"), f"memory://{tmp_path.name}-fp8"]):
        quantize(source, str(tmp_path / f"out-{number}"), QuantizationConfig(), run)
    assert weights_of(tmp_path / "out-0") == weights_of(tmp_path / "out-1")


@pytest.mark.parametrize(
    ("shape", "scale_shape", "block"),
    [
        ((130, 200), (), (130, 200)),
        ((130, 200), (1,), (130, 200)),
        ((130, 200), (1, 1), (130, 200)),
        ((130, 200), (130,), (1, 200)),
        ((130, 200), (130, 1), (1, 200)),
        ((130, 200), (2, 2), (128, 128)),
        ((3, 130, 200), (3, 2, 2), (128, 128)),
        ((3, 130, 200), (3, 130, 1), (1, 200)),
        ((3, 130, 200), (3,), (130, 200)),
        ((3, 130, 200), (3, 1, 1), (130, 200)),
        ((3, 130, 200), (), (130, 200)),
        ((4, 96), (4, 3), (1, 32)),
        ((50,), (1,), (1, 50)),
    ],
)
def test_the_shape_of_the_scales_tells_what_they_are_for(
    tmp_path: Path, shape: tuple[int, ...], scale_shape: tuple[int, ...], block: tuple[int, int]
) -> None:
    weight, scale = float8(*shape), scales(*scale_shape)
    checkpoint = save_model(tmp_path, {"w": weight, "w_scale": scale})
    lead = (1,) * (len(shape) - 2)
    grid = scale.reshape(*shape[:-2], -1, 1) if block == (1, shape[-1]) else scale
    if block == (shape[-2:] if len(shape) > 1 else (1, *shape)):
        grid = scale.reshape(-1, 1, 1) if scale.numel() > 1 else scale.reshape(*lead, 1, 1)
    matrix = weight.reshape(1, -1) if len(shape) == 1 else weight
    assert_equal(values_of(checkpoint)["w"], by_blocks(matrix, grid, *block).reshape(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_is_the_model_s(tmp_path: Path, dtype: torch.dtype) -> None:
    weight, scale = float8(130, 200), scales(130, 1)
    name = str(dtype).removeprefix("torch.")
    for key, config in (("dtype", {"dtype": name}), ("text", {"text_config": {"torch_dtype": name}})):
        checkpoint = save_model(tmp_path / key, {"w": weight, "w_scale": scale}, **config)
        assert_equal(values_of(checkpoint)["w"], (weight.float() * scale).to(dtype))


def test_scales_that_are_powers_of_two_alone(tmp_path: Path) -> None:
    weight, exponents = float8(256, 256), torch.tensor([[100, 127], [130, 90]], dtype=torch.uint8)
    expected = by_blocks(weight, torch.exp2(exponents.float() - 127), 128, 128)
    for name, scale in (("e8m0", exponents.view(torch.float8_e8m0fnu)), ("uint8", exponents)):
        checkpoint = save_model(tmp_path / name, {"a.weight": weight, "a.weight_scale_inv": scale}, DEEPSEEK)
        assert_equal(values_of(checkpoint)["a.weight"], expected)


def test_any_slice_is_decoded_alone(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path, {"w": float8(3, 130, 200), "w_scale_inv": scales(3, 2, 2)}, DEEPSEEK)
    slices = [
        (0, 78_000),
        (0, 0),
        (0, 1),
        (77_999, 78_000),
        (127 * 200, 129 * 200),
        (129 * 200 + 7, 131 * 200 - 3),
    ]
    assert_slices(checkpoint, "w", slices)


def test_scales_may_lie_in_another_file_and_a_plan_remembers_where(tmp_path: Path) -> None:
    weight, scale = float8(300, 200), scales(3, 2)
    save_file(
        {"b.weight": weight, "a.weight_scale_inv": scale}, tmp_path / "model-00001-of-00002.safetensors"
    )
    save_file(
        {"a.weight": weight, "b.weight_scale_inv": scale}, tmp_path / "model-00002-of-00002.safetensors"
    )
    checkpoint = open_checkpoint(str(tmp_path))
    for values in values_of(checkpoint).values():
        assert_equal(values, by_blocks(weight, scale, 128, 128))
    plan = make_plan(checkpoint, QuantizationConfig(), RunConfig(block_bytes=64 << 10))
    again = read_again(written(plan))
    assert again == plan
    planned = {block.layer.name: block.layer for block in again.blocks}
    assert planned == {layer.name: layer for layer in checkpoint.layers}


def test_an_index_that_names_scales_is_kept(tmp_path: Path) -> None:
    save_file({"a.weight": float8(4, 4), "a.weight_scale_inv": scales(1, 1)}, tmp_path / "m.safetensors")
    names = dict.fromkeys(["a.weight", "a.weight_scale_inv"], "m.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert [layer.name for layer in open_checkpoint(str(tmp_path)).layers] == ["a.weight"]


def test_a_single_file_is_decoded_by_the_config_beside_it(tmp_path: Path) -> None:
    weight, scale = float8(64, 64), scales(2, 2)
    save_model(
        tmp_path, {"w": weight, "w_scale_inv": scale}, {"weight_block_size": [32, 32]}, dtype="float16"
    )
    (layer,) = open_checkpoint(str(tmp_path / "model.safetensors")).layers
    assert (layer.dtype, layer.shape) == ("float16", (64, 64))


def test_what_has_no_partner_stays_a_layer_of_its_own(tmp_path: Path) -> None:
    tensors = {
        "a.weight": float8(4, 4),
        "b.weight_scale_inv": scales(1, 1),
        "c.weight": torch.ones(4, 4),
        "c.weight_scale": scales(4, 1),
        "d.weight": float8(4, 4),
        "d.weight_scale": scales(4, 1),
        "d.input_scale": scales(1),
        "layer_scale": torch.ones(4),
    }
    checkpoint = save_model(tmp_path, tensors)
    found = values_of(checkpoint)
    assert found.keys() == tensors.keys() - {"d.weight_scale", "d.input_scale"}
    assert checkpoint.left_out.keys() == {"d.input_scale"}
    assert checkpoint.unscaled.keys() == {"a.weight"}
    for name in found.keys() - {"d.weight"}:
        assert_equal(found[name], tensors[name])


def test_tied_codes_stay_tied_with_their_scales_and_only_then(tmp_path: Path) -> None:
    weight, scale, other = float8(256, 128), scales(2, 1), scales(2, 1) * 2
    state = {
        "embed": weight,
        "embed_scale": scale,
        "head": weight,
        "head_scale": scale,
        "third": weight,
        "third_scale": other,
    }
    torch.save(state, tmp_path / "model.bin")
    checkpoint = open_checkpoint(str(tmp_path / "model.bin"))
    assert checkpoint.aliases == {"head": "embed"}
    found = values_of(checkpoint)
    assert found.keys() == {"embed", "third"}
    assert_equal(found["embed"], by_blocks(weight, scale, 128, 128))
    assert_equal(found["third"], by_blocks(weight, other, 128, 128))
    assert {*found, *checkpoint.aliases, *checkpoint.decoded} == state.keys()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"w": float8(300, 300), "w_scale_inv": scales(2, 3)},
            r"layer 'w_scale_inv'.*\[2, 3\] do not fit .*128x128",
        ),
        ({"w": float8(300, 300), "w_scale_inv": scales(3, 3, 1)}, "do not fit a tensor"),
        (
            {"w": float8(4, 4), "w_scale": torch.ones(4, dtype=torch.int32)},
            "scales of int32 are not supported",
        ),
        ({"w": float8(1).reshape(()), "w_scale": scales(1)}, "single float8 value"),
    ],
)
def test_scales_that_do_not_fit_are_one_error(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(InvalidCheckpoint, match=message):
        save_model(tmp_path, tensors, DEEPSEEK)


def test_codes_that_are_not_contiguous_are_refused(tmp_path: Path) -> None:
    torch.save({"w": float8(4, 8).T, "w_scale": scales(1)}, tmp_path / "model.bin")
    with pytest.raises(InvalidCheckpoint, match=r"layer 'w'.*not contiguous"):
        open_checkpoint(str(tmp_path / "model.bin"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "not readable JSON"),
        (b"[]", "not an object"),
        (b'{"quantization_config": {"weight_block_size": [128]}}', "not a pair of positive integers"),
        (b'{"quantization_config": {"weight_block_size": [0, 128]}}', "not a pair of positive integers"),
    ],
)
def test_a_config_that_says_nothing_usable_is_one_error(tmp_path: Path, config: bytes, message: str) -> None:
    save_file({"w": float8(4, 4), "w_scale": scales(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(InvalidCheckpoint, match=message):
        open_checkpoint(str(tmp_path))


def test_a_config_is_read_only_where_tensors_look_like_codes(tmp_path: Path) -> None:
    save_file({"w.weight": torch.ones(4, 4), "w.weight_scale": scales(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b"{")
    assert len(open_checkpoint(str(tmp_path)).layers) == 2


ZEROS = [0x00, 0x80, 0x00, 0x80]  # 0 and -0


def of_scale_0(folder: Path, codes: list[int], dtype: torch.dtype = torch.float8_e4m3fn) -> Checkpoint:
    weight = torch.tensor([codes], dtype=torch.uint8).view(dtype)
    return save_model(folder, {"w": weight, "w_scale": torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("code", [0x01, 0x08, 0x40])
def test_a_scale_of_0_is_refused_beside_a_code_that_is_not_0(
    tmp_path: Path, code: int, dtype: torch.dtype
) -> None:
    with pytest.raises(InvalidCheckpoint, match="its scale is 0, but its codes are not all 0"):
        values_of(of_scale_0(tmp_path, [*ZEROS, code], dtype))


def test_a_scale_of_0_is_right_for_codes_that_are_all_0(tmp_path: Path) -> None:
    assert not values_of(of_scale_0(tmp_path, ZEROS))["w"].any()


def test_nan_and_what_overflows_is_named(tmp_path: Path) -> None:
    weight = float8(4, 8)
    weight.view(torch.uint8)[2, 3] = 0x7F
    for name, scale, bad in (("nan", 1.0, r"NaN at index \[2, 3\]"), ("inf", 3e38, r"inf at index \[0, ")):
        save_model(tmp_path / name, {"w": weight, "w_scale": torch.tensor([scale])})
        with pytest.raises(UnquantizableWeights, match=r"layer 'w'.*" + bad):
            quantize(
                str(tmp_path / name),
                str(tmp_path / f"{name}-out"),
                QuantizationConfig(),
                RunConfig(engine="inline"),
            )


@pytest.mark.parametrize(
    ("weights", "scale"),
    [
        ({"strategy": "tensor"}, scales(1)),
        ({"strategy": "channel"}, scales(64, 1)),
        ({"strategy": "block", "block_structure": [32, 16]}, scales(2, 6)),
        ({"strategy": "group", "group_size": 48}, scales(64, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float_quantized_of_compressed_tensors(
    tmp_path: Path, weights: dict[str, object], scale: torch.Tensor, dtype: torch.dtype
) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", **weights}}
    state = {"weight": float8(64, 96), "weight_scale": scale.to(dtype)}
    compressor = BaseCompressor.get_value_from_registry("float-quantized")
    expected = compressor.decompress(state, QuantizationScheme(**group))["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
    }
    name = str(dtype).removeprefix("torch.")
    tensors = {f"a.{key}": tensor for key, tensor in state.items()}
    assert_equal(values_of(save_model(tmp_path, tensors, config, torch_dtype=name))["a.weight"], expected)
