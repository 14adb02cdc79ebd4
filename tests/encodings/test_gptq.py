"""GPTQ's codes become layers with the values that their format defines, as the libraries decode them."""

from __future__ import annotations

import hashlib
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.arena import fresh
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import assert_equal, assert_slices, save_model, values_of
from tests.checkpoint.word_models import Words, pack, words
from tests.plan.plan_bytes import read_again, written


def config(words: Words, group: int = 32, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": words.bits, "group_size": group, **more}


def save(folder: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any] | None) -> Checkpoint:
    return save_model(folder, tensors, quantization, torch_dtype="float16")


@pytest.mark.parametrize("by_activation", [False, True])
@pytest.mark.parametrize(
    ("shape", "group"), [((96, 128), 32), ((40, 64), 64), ((33, 100), 32), ((64, 96), -1)]
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_become_the_weight_of_the_full_precision_release(
    tmp_path: Path, bits: int, shape: tuple[int, int], group: int, *, by_activation: bool
) -> None:
    made = Words.random(shape, bits, shape[1] if group == -1 else group, by_activation=by_activation)
    bias = torch.ones(shape[0], dtype=torch.float16)
    checkpoint = save(tmp_path, {**made.gptq(), "a.bias": bias}, config(made, group, desc_act=by_activation))
    assert {layer.name for layer in checkpoint.layers} == {"a.weight", "a.bias"}
    assert_equal(values_of(checkpoint)["a.weight"], made.weight())
    assert checkpoint.decoded == dict.fromkeys(made.gptq(), "a.weight")
    assert checkpoint.notes == (f"decoded from GPTQ's {bits}-bit codes and scales to float16: 1 layer",)


@pytest.mark.parametrize(
    ("bits", "by_activation", "digest"),
    [
        (2, False, "44f6e0df372f07d1"),
        (3, False, "5b8494d9dff91fd6"),
        (4, True, "79fa46df8db89f70"),
        (8, True, "7844e8c0d8bc291b"),
    ],
)
def test_values_are_those_of_the_library(
    tmp_path: Path, bits: int, digest: str, *, by_activation: bool
) -> None:
    """sha256 of the float16 weight of AutoGPTQ 0.7.1's QuantLinear, whose zeros are 1 or more."""
    made = Words.random((64, 96), bits, 32, by_activation=by_activation)
    made.zeros[:] = np.maximum(made.zeros, 1)
    found = values_of(save(tmp_path, made.gptq(), config(made)))["a.weight"]
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_of_the_second_format_are_stored_as_they_are(tmp_path: Path, bits: int) -> None:
    made = Words.random((64, 96), bits, 32)
    tensors = made.gptq(stored_zeros=pack(made.zeros, bits))
    checkpoint = save(tmp_path, tensors, config(made, checkpoint_format="gptq_v2"))
    assert_equal(values_of(checkpoint)["a.weight"], made.weight())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptqmodel_takes_one_off_whole_words_in_which_a_zero_of_0_borrows(tmp_path: Path, bits: int) -> None:
    made = Words.random((64, 96), bits, 32)
    made.zeros[:, ::3] = 0
    ones = np.uint32(sum(1 << at for at in range(0, 32, bits)))
    tensors = made.gptq(stored_zeros=pack(made.zeros, bits) - ones)
    quantization = config(made, checkpoint_format="gptq", meta={"quantizer": ["gptqmodel:2.2.0"]})
    assert_equal(values_of(save(tmp_path, tensors, quantization))["a.weight"], made.weight())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_are_rounded_once_to_the_model_s_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    made = Words.random((64, 96), 4, 32)
    checkpoint = save_model(tmp_path, made.gptq(), config(made), dtype=str(dtype).removeprefix("torch."))
    assert_equal(values_of(checkpoint)["a.weight"], made.weight(dtype))


@pytest.mark.parametrize("name", ["quantize_config.json", "config.json"])
def test_the_config_may_be_a_file_of_its_own(tmp_path: Path, name: str) -> None:
    """AutoGPTQ's older releases wrote quantize_config.json alone; one file has the model's dtype."""
    made = Words.random((64, 96), 3, 32)
    save(tmp_path, made.gptq(), None if name != "config.json" else config(made))
    if name != "config.json":
        (tmp_path / name).write_text('{"bits": 3, "group_size": 32, "desc_act": false}')
    assert_equal(values_of(open_checkpoint(str(tmp_path)))["a.weight"], made.weight())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_shapes_tell_bits_and_groups_where_no_config_does(tmp_path: Path, bits: int) -> None:
    made = Words.random((64, 96), bits, 32)
    found = values_of(save(tmp_path, made.gptq(), None))
    assert_equal(found["a.weight"], made.weight())


def test_groups_in_order_may_be_left_out(tmp_path: Path) -> None:
    made = Words.random((64, 96), 3, 32)
    tensors = made.gptq()
    del tensors["a.g_idx"]
    assert_equal(values_of(save(tmp_path, tensors, config(made)))["a.weight"], made.weight())


def test_modules_may_have_bits_and_groups_of_their_own(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: the first pattern that a module's name begins with holds."""
    made = {
        "model.layers.0.up": Words.random((64, 128), 4, 32, seed=1),
        "model.layers.0.down": Words.random((64, 128), 8, 64, seed=2),
        "model.layers.1.down": Words.random((64, 128), 2, 128, seed=3),
    }
    tensors = {name: tensor for module, own in made.items() for name, tensor in own.gptq(module).items()}
    tensors["lm_head.weight"] = torch.ones(3, 3)
    dynamic = {
        "-:lm_head": {},
        r"+:.*\.0\.down": {"bits": 8, "group_size": 64},
        r".*\.down": {"bits": 2, "group_size": -1},
    }
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": dynamic}
    found = values_of(save(tmp_path, tensors, quantization))
    assert found.keys() == {"lm_head.weight", *(f"{module}.weight" for module in made)}
    for module, own in made.items():
        assert_equal(found[f"{module}.weight"], own.weight())


@pytest.mark.parametrize("packing", ["auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round"])
@pytest.mark.parametrize("bits", [4, 5])
def test_auto_round_says_how_zeros_are_stored(tmp_path: Path, packing: str, bits: int) -> None:
    made, own = Words.random((64, 96), bits, 32), Words.random((64, 96), 8, 96, seed=4)
    tensors = {
        **made.gptq("a", stored_zeros=None if packing.endswith("auto_gptq") else pack(made.zeros, bits)),
        **own.gptq("b.c", stored_zeros=None if packing.endswith("auto_gptq") else pack(own.zeros, 8)),
    }
    quantization = {
        "quant_method": "auto-round",
        "packing_format": packing,
        "bits": bits,
        "group_size": 32,
        "extra_config": {"b.c": {"bits": 8, "group_size": -1}, "lm_head": {"bits": 16}},
    }
    found = values_of(save(tmp_path, tensors, quantization))
    assert_equal(found["a.weight"], made.weight())
    assert_equal(found["b.c.weight"], own.weight())


def test_parts_may_lie_in_several_files(tmp_path: Path) -> None:
    made = Words.random((64, 96), 4, 32, by_activation=True)
    save(tmp_path, {"norm": torch.ones(3)}, config(made, desc_act=True))
    for index, (name, tensor) in enumerate(made.gptq().items()):
        save_file({name: tensor}, tmp_path / f"model-{index}.safetensors")
    (tmp_path / "model.safetensors").unlink()
    checkpoint = open_checkpoint(str(tmp_path))
    assert_equal(values_of(checkpoint)["a.weight"], made.weight())
    assert_slices(checkpoint, "a.weight", [(96, 96 * 40)])


@pytest.fixture(scope="module", params=[2, 3, 4, 8])
def any_bits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made = Words.random((139, 41), request.param, 32, by_activation=request.param > 2)
    return save(tmp_path_factory.mktemp("gptq"), made.gptq(), config(made))


@settings(max_examples=50)
@given(edges=st.lists(st.integers(0, 139 * 41), min_size=2, max_size=6).map(sorted))
def test_any_slice_is_decoded_alone(any_bits: Checkpoint, edges: list[int]) -> None:
    assert_slices(any_bits, "a.weight", list(pairwise(edges)))


def test_a_plan_remembers_every_part(any_bits: Checkpoint) -> None:
    plan = make_plan(any_bits, QuantizationConfig(), RunConfig(block_bytes=64 << 10))
    again = read_again(written(plan))
    assert again == plan
    assert {block.layer for block in again.blocks} == set(any_bits.layers)


_I32 = torch.int32


@pytest.mark.parametrize(
    ("change", "quantization", "message"),
    [
        ({"a.qzeros": None}, {}, r"layer 'a.qweight'.*a.qzeros is missing"),
        ({"a.scales": None}, {}, r"layer 'a.qweight'.*a.scales is missing"),
        ({"a.qweight": None}, {}, r"layer 'a.(qzeros|scales)'.*a.qweight is missing"),
        ({"a.g_idx": None}, {"desc_act": True}, r"desc_act, but a.g_idx is missing"),
        (
            {"a.qzeros": torch.zeros(3, 7, dtype=_I32)},
            {},
            r"4 bits, which codes \[12, 64\] and zeros \[3, 7\]",
        ),
        ({"a.qzeros": torch.zeros(2, 8, dtype=_I32)}, {}, r"'a.qzeros'.*\[2, 8\].*needs \[3, 8\]"),
        ({"a.qzeros": torch.zeros(3, 8)}, {}, r"'a.qzeros'.*\[3, 8\] of float32 are not int32 words"),
        ({"a.scales": torch.ones(2, 64)}, {}, r"scales \[2, 64\] do not fit 96 inputs in groups of 32"),
        ({"a.scales": torch.ones(3, 60)}, {}, r"'a.scales'.*\[3, 60\].*needs \[3, 64\]"),
        ({"a.scales": torch.ones(64)}, {}, r"\[64\] of float32 are not scales of a matrix"),
        ({"a.scales": torch.ones(3, 64, dtype=_I32)}, {}, r"of int32 are not scales"),
        ({"a.g_idx": torch.zeros(80, dtype=_I32)}, {}, r"of 80 inputs can't have"),
        (
            {"a.g_idx": torch.zeros(96, dtype=torch.int64)},
            {},
            r"'a.g_idx'.*\[96\] of int64 are not the int32 groups of the inputs",
        ),
        (
            {"a.g_idx": torch.zeros((), dtype=_I32)},
            {},
            r"'a.g_idx'.*\[\] of int32 are not the int32 groups of the inputs",
        ),
        ({}, {"bits": 8}, r"the config says 8 bits, which codes \[12, 64\].*they have 4 bits"),
        ({}, {"bits": 5}, r"the config says 5 bits"),
        ({}, {"group_size": 128}, r"do not fit 96 inputs in groups of 128"),
        ({}, {"group_size": 0}, r"config.json.*group_size 0"),
        ({}, {"bits": "4"}, r"config.json.*bits '4' is not an integer"),
        ({}, {"dynamic": {"a": {"bits": 2}}}, r"the config says 2 bits"),
        ({}, {"dynamic": {"-:a": {}}}, r"says that this module is not quantized"),
        ({}, {"dynamic": {"(": {}}}, r"not a valid or supported regex"),
        ({"a.weight": torch.ones(64, 96)}, {}, r"'a.weight'.*stored a second time"),
    ],
)
def test_what_does_not_fit_is_one_error(
    tmp_path: Path, change: dict[str, torch.Tensor | None], quantization: dict[str, Any], message: str
) -> None:
    made = Words.random((64, 96), 4, 32)
    tensors = {name: tensor for name, tensor in {**made.gptq(), **change}.items() if tensor is not None}
    with pytest.raises(InvalidCheckpoint, match=message):
        save(tmp_path, tensors, config(made, **{"desc_act": False, **quantization}))


@pytest.mark.parametrize("group", [-1, 3])
@pytest.mark.parametrize("rows", [slice(0, 64), slice(3, 5)])
def test_groups_beyond_the_scales_are_an_error_and_not_read(tmp_path: Path, group: int, rows: slice) -> None:
    made = Words.random((64, 96), 4, 32)
    tensors = {**made.gptq(), "a.g_idx": torch.full((96,), group, dtype=torch.int32)}
    checkpoint = save(tmp_path, tensors, config(made))
    with pytest.raises(
        InvalidCheckpoint, match=r"layer 'a.weight'.*g_idx refers to groups beyond its 3 scales"
    ):
        assert_slices(checkpoint, "a.weight", [(rows.start * 96, rows.stop * 96)])


@pytest.mark.parametrize(
    ("quantization", "names", "what"),
    [
        ({"checkpoint_format": "marlin"}, ("B", "s"), "GPTQ's layout 'marlin'"),
        ({"is_marlin_format": True}, ("B", "s"), "GPTQ's layout 'marlin'"),
        ({"checkpoint_format": "bitblas"}, ("qweight", "qzeros", "scales"), "GPTQ's layout 'bitblas'"),
        ({"meta": {"rotation": "hadamard"}}, ("qweight", "qzeros", "scales"), "weights that were rotated"),
        (
            {"rotation_config": {"rotation_type": "hadamard"}},
            ("qweight", "qzeros", "scales"),
            "weights that were rotated",
        ),
        ({"checkpoint_format": "gptq_p"}, ("qweight", "qzeros", "scales"), "GPTQ's layout 'gptq_p'"),
    ],
)
def test_layouts_that_are_not_decoded_stay_byte_for_byte_and_are_named(
    tmp_path: Path, quantization: dict[str, Any], names: tuple[str, ...], what: str
) -> None:
    tensors = {
        f"a.{name}": torch.ones(64, 96, dtype=torch.int32 if name[0] in "Bq" else torch.float16)
        for name in names
    }
    checkpoint = save(
        tmp_path, tensors, {"quant_method": "gptq", "bits": 4, "group_size": 32, **quantization}
    )
    assert checkpoint.kept.keys() == tensors.keys()
    assert all(
        re.fullmatch(f"codes of {what}, which can't be decoded", why) for why in checkpoint.kept.values()
    )
    assert {layer.name for layer in checkpoint.layers} == {*tensors}
    plan = make_plan(checkpoint, QuantizationConfig(), RunConfig())
    assert {block.spec.quant_type for block in plan.blocks} == {"none"}
    assert any(re.search(what, note) for note in plan.notes)


def test_words_of_another_size_are_read_for_a_few_rows_as_for_all(tmp_path: Path) -> None:
    """A matrix whose rows are far apart: more than a request's worth of bytes between them."""
    made = Words.random((40_000, 64), 8, 64)
    checkpoint = save(tmp_path, made.gptq(), config(made, 64))
    assert_slices(checkpoint, "a.weight", [(0, 64), (64 * 30_001, 64 * 30_007), (64 * 39_999, 64 * 40_000)])
    assert words(pack(made.codes.T, 8).T).shape == (16, 40_000)


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (8, 32), (8, 1024)])
@pytest.mark.parametrize("rows", [slice(0, 1024), slice(100, 101), slice(33, 600)])
@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_decoding_holds_what_a_worker_s_bound_counts(
    tmp_path: Path, layout: str, bits: int, group: int, rows: slice
) -> None:
    made = Words.random((1024, 1024), bits if layout == "gptq" else 4, group)
    tensors = made.gptq() if layout == "gptq" else made.awq()
    checkpoint = save(tmp_path, tensors, config(made, group, quant_method=layout))
    (layer,) = checkpoint.layers
    found = layer.encoding.slice(layer, rows.start * 1024, rows.stop * 1024)
    with SourceReader() as reader:
        reader.read([(layer, 0, 1024)])  # compiles
        read = [np.fromfile(p.uri, np.uint8, p.stop - p.start, offset=p.start) for p in found.ranges]
        tracemalloc.start()
        found.values(read, reader, fresh)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= found.decoded_nbytes + found.beside_nbytes
