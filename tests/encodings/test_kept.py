"""Kept codes are the source's own in V2's order, and decode bit for bit to what the source stands for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.source_codes import SourceCodes, find_codes
from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config import NotKept, QuantSpec
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.kept_codes import KeptCodes
from arrowquant_dist.encodings.registry import ENCODINGS
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.tensor import QuantizedTensor, quantize_values
from tests.checkpoint.quantized_models import Tensors, assert_equal, save_model, values_of
from tests.checkpoint.word_models import Words, pack
from tests.encodings.test_packed import INTEGERS, PACKED, STRATEGIES, compressed
from tests.plan import every_kind

AUTO_ROUND = {"quant_method": "auto-round", "packing_format": "auto_round"}


def spec_of(codes: SourceCodes, name: str = "a.weight") -> QuantSpec:
    spec = codes[name]
    assert isinstance(spec, QuantSpec), spec
    return spec


def kept(checkpoint: Checkpoint, rows: range | None = None, name: str = "a.weight") -> QuantizedTensor:
    """Rows of a layer with its codes as they are, in memory of their own."""
    layer = next(layer for layer in checkpoint.layers if layer.name == name)
    spec = spec_of(find_codes(checkpoint), name)
    count = int(np.prod(layer.shape[: spec.row_dims]))
    rows = range(count) if rows is None else rows
    with SourceReader(files=checkpoint.files) as reader:
        read_as = replace(layer, encoding=KeptCodes(layer.encoding, spec))
        (memory,) = reader.read([(read_as, rows.start * layer.shape[-1], rows.stop * layer.shape[-1])])
    whole = len(rows) == count
    shape = layer.shape if whole else (len(rows), layer.shape[-1])
    own = spec if whole else replace(spec, row_dims=1)
    return quantize_values(memory, shape, layer.dtype, own)


def signed_codes(tensor: QuantizedTensor) -> np.ndarray:
    """int64 [rows, columns], unpacked bit by bit."""
    bits, (rows, columns) = int(tensor.quant_type.removeprefix("int")), tensor.matrix_shape
    if bits == 8:
        return tensor.codes.view(np.int8).reshape(rows, columns).astype(np.int64)
    stream = np.unpackbits(tensor.codes.reshape(rows, -1), axis=1, bitorder="little")
    assert not stream[:, columns * bits :].any(), "spare bits are 0"
    return stream[:, : columns * bits].reshape(rows, columns, bits) @ (1 << np.arange(bits)) - (
        1 << (bits - 1)
    )


def save_words(folder: Path, made: Words, form: str, group: int, dtype: str = "float32") -> Checkpoint:
    if form == "gptq":
        tensors = made.gptq(stored_zeros=pack(made.zeros, made.bits))
        return save_model(
            folder, tensors, {**AUTO_ROUND, "bits": made.bits, "group_size": group}, dtype=dtype
        )
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": form}
    return save_model(folder, made.awq() if form == "gemm" else made.gemv(), config, dtype=dtype)


@pytest.mark.parametrize(
    ("form", "bits", "stored"),
    [
        *(("gptq", bits, f"int{max(bits, 8 if bits > 4 else bits)}") for bits in range(2, 9)),
        ("gemm", 4, "int4"),
        ("gemv", 4, "int4"),
    ],
)
@pytest.mark.parametrize(("shape", "group"), [((96, 128), 32), ((40, 200), 64), ((64, 96), 96)])
def test_codes_scales_and_zero_points_of_words_are_the_source_s(
    tmp_path: Path, form: str, bits: int, stored: str, shape: tuple[int, int], group: int
) -> None:
    """Of the makers' numbers: codes of outputs, less half of their range, as zeros are. 5 to 7 bits in 8."""
    made = Words.random(shape, bits, group)
    checkpoint = save_words(tmp_path, made, form, group)
    found, half = kept(checkpoint), 1 << (bits - 1)
    assert (found.quant_type, found.quant_axis) == (stored, 0)
    assert found.group_size == (0 if group == shape[1] else group)
    assert np.array_equal(signed_codes(found), made.codes.T - half)
    assert np.array_equal(found.scales.reshape(shape[0], -1), made.scales.T.astype(np.float32))
    assert np.array_equal(found.zero_points.reshape(shape[0], -1), made.zeros.T - half)
    assert_equal(torch.from_numpy(found.values().view(np.float32)), values_of(checkpoint)["a.weight"])


@settings(max_examples=60)
@given(data=st.data())
def test_any_rows_of_words_decode_to_the_values_of_the_source(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(["gptq", "gemm", "gemv"]))
    bits = data.draw(st.sampled_from([2, 3, 4, 5, 8])) if form == "gptq" else 4
    group = data.draw(st.sampled_from([8, 32, 64, 1024]))
    outputs = 8 * data.draw(st.integers(1, 20))
    inputs = data.draw(st.integers(1, 40)) * 8
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    made = Words.random((outputs, inputs), bits, min(group, inputs), seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        made.zeros[:] = 1 << (bits - 1)
    checkpoint = save_words(tmp_path_factory.mktemp("words"), made, form, min(group, inputs), dtype)
    rows = sorted(data.draw(st.tuples(st.integers(0, outputs - 1), st.integers(1, outputs))))
    rows = [rows[0], max(rows[1], rows[0] + 1)]
    found = kept(checkpoint, range(*rows))
    assert (found.zero_points.size == 0) == bool((made.zeros == 1 << (bits - 1)).all())
    whole = values_of(checkpoint)["a.weight"]
    values = torch.from_numpy(found.values().copy()).view(whole.dtype)
    assert_equal(values, whole[slice(*rows)])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["strategy"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("form", "bits"), [(PACKED, 2), (PACKED, 4), (PACKED, 8), (INTEGERS, 8)])
@pytest.mark.parametrize("shape", [(48, 96), (3, 20, 64), (37, 100)])
def test_integers_of_compressed_tensors_are_kept(
    tmp_path: Path, form: str, bits: int, strategy: dict[str, Any], shape: tuple[int, ...], *, symmetric: bool
) -> None:
    beyond_the_library = strategy["strategy"] == "block" and len(shape) == 3
    if beyond_the_library or (strategy["strategy"] in ("group", "block") and shape[-1] % 32):
        strategy = {"strategy": "channel"}
    weights = {"num_bits": bits, "symmetric": symmetric, **strategy}
    stored, expected, config = compressed(form, shape, weights, torch.float32)
    checkpoint = save_model(tmp_path, stored, config, dtype="float32")
    found = kept(checkpoint)
    assert_equal(torch.from_numpy(found.values().view(np.float32)), expected)
    assert (found.zero_points.size == 0) == symmetric
    assert found.quant_axis == (-1 if weights["strategy"] == "tensor" else 0)
    assert found.group_size == (32 if weights["strategy"] in ("group", "block") else 0)
    assert found.row_dims == len(shape) - 1
    if form == INTEGERS:
        assert found.codes.tobytes() == stored["a.weight"].numpy().tobytes()
    elif bits < 8 and shape[-1] * bits % 32 == 0:
        assert found.codes.tobytes() == stored["a.weight_packed"].numpy().tobytes()


@settings(max_examples=40)
@given(
    bits=st.sampled_from([2, 4, 8]),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 130)),
    symmetric=st.booleans(),
    form=st.sampled_from([PACKED, INTEGERS]),
    edges=st.tuples(st.integers(0, 69), st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_rows_of_channels_decode_to_the_values_of_the_source(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    shape: tuple[int, int],
    edges: tuple[int, int],
    form: str,
    dtype: torch.dtype,
    *,
    symmetric: bool,
) -> None:
    bits = 8 if form == INTEGERS else bits
    weights = {"num_bits": bits, "symmetric": symmetric, "strategy": "channel"}
    stored, _, config = compressed(form, shape, weights, dtype)
    name = str(dtype).removeprefix("torch.")
    checkpoint = save_model(tmp_path_factory.mktemp("channels"), stored, config, dtype=name)
    start = min(edges[0], shape[0] - 1)
    stop = max(start + 1, min(edges[1], shape[0]))
    found = kept(checkpoint, range(start, stop))
    signed_codes(found)
    values = torch.from_numpy(found.values().copy()).view(dtype)
    assert_equal(values, values_of(checkpoint)["a.weight"][start:stop])


@pytest.mark.parametrize("grid", [(3, 1, 1), (3,), (3, 20, 1)])
def test_what_rows_of_a_stack_share_is_each_row_s(tmp_path: Path, grid: tuple[int, ...]) -> None:
    weights = {"num_bits": 8, "symmetric": True, "strategy": "channel"}
    stored, _, config = compressed(INTEGERS, (3, 20, 64), weights)
    stored["a.weight_scale"] = torch.rand(grid, generator=torch.Generator().manual_seed(5)) + 0.5
    checkpoint = save_model(tmp_path, stored, config, dtype="float32")
    found = kept(checkpoint)
    scales = stored["a.weight_scale"].reshape(3, -1, 1).expand(3, 20, 1)
    assert np.array_equal(found.scales, scales.reshape(-1).numpy())
    expected = stored["a.weight"].float() * scales
    assert_equal(torch.from_numpy(found.values().view(np.float32)), expected)
    assert found.values().tobytes() == values_of(checkpoint)["a.weight"].numpy().tobytes()
    some = kept(checkpoint, range(13, 47))  # of all three matrices
    assert np.array_equal(some.scales, scales.reshape(-1).numpy()[13:47])
    assert np.array_equal(some.codes, found.codes[13 * 64 : 47 * 64])


def test_bits_of_a_word_that_belong_to_no_code_are_not_kept(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "symmetric": True, "strategy": "channel"}
    stored, _, config = compressed(PACKED, (5, 33), weights)
    stored["a.weight_packed"][:, -1] |= -16  # all but the last code's four
    signed_codes(kept(save_model(tmp_path, stored, config)))


@pytest.mark.parametrize("in_order", ["runs", "minus one", "none"])
def test_groups_that_are_runs_after_all_are_kept(tmp_path: Path, in_order: str) -> None:
    stored, expected, config = _grouped()
    if in_order != "none":
        runs = torch.arange(96, dtype=torch.int32) // 32
        stored["a.weight_g_idx"] = runs if in_order == "runs" else torch.full_like(runs, -1)
    checkpoint = save_model(tmp_path, stored, config, dtype="float32")
    assert_equal(torch.from_numpy(kept(checkpoint).values().view(np.float32)), expected)


def _grouped() -> tuple[Tensors, torch.Tensor, dict[str, Any]]:
    weights = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32}
    return compressed(PACKED, (16, 96), weights, torch.float32)


def reason(codes: SourceCodes, name: str = "a.weight") -> str:
    found = codes[name]
    assert isinstance(found, NotKept)
    return found.reason


def test_groups_in_the_order_of_activations_are_not_kept(tmp_path: Path) -> None:
    made = Words.random((64, 96), 4, 32, by_activation=True)
    gptq = save_model(tmp_path / "gptq", made.gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32})
    assert "order of activations" in reason(find_codes(gptq))
    stored, _, config = _grouped()
    stored["a.weight_g_idx"] = torch.from_numpy(made.groups.astype(np.int32))
    assert "order of activations" in reason(find_codes(save_model(tmp_path / "ct", stored, config)))


def test_a_scale_for_each_column_is_not_kept(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "symmetric": True, "strategy": "channel"}
    stored, _, config = compressed(INTEGERS, (16, 96), weights)
    stored["a.weight_scale"] = torch.ones(1, 96)
    assert "each column" in reason(find_codes(save_model(tmp_path, stored, config)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -60000.0])
def test_scales_that_make_no_finite_values_are_refused_and_the_layer_is_named(
    tmp_path: Path, value: float
) -> None:
    made = Words.random((64, 96), 4, 32)
    made.scales[1, 5] = value
    checkpoint = save_words(tmp_path, made, "gptq", 32, "float16")
    with pytest.raises(UnquantizableWeights, match=r"has a scale of .*; correct the source") as error:
        kept(checkpoint)
    assert error.value.layer == "a.weight"


def test_negative_scales_are_kept(tmp_path: Path) -> None:
    """auto-round writes them."""
    made = Words.random((64, 96), 4, 32)
    made.scales[:, ::3] *= -1
    checkpoint = save_words(tmp_path, made, "gptq", 32)
    assert_equal(
        torch.from_numpy(kept(checkpoint).values().view(np.float32)), values_of(checkpoint)["a.weight"]
    )


@pytest.mark.parametrize("layer", every_kind.EVERY, ids=lambda layer: layer.encoding.kind)
def test_every_kind_has_no_codes_or_says_what_they_are(layer: Layer) -> None:
    """Of those that cannot be kept; the others are tried above."""
    keeping = {"packed", "int8", "gptq", "awq", "awq_rows", "dataset"}
    if layer.encoding.kind in keeping:
        assert type(layer.encoding).kept_spec is not Encoding.kept_spec
        return
    found = layer.encoding.kept_spec(layer, SourceReader())
    if layer.encoding.kind in ("raw", "strided"):
        assert found is None
    else:
        assert found == NotKept(f"{layer.encoding.label} have a form that V2 does not have")


def test_kinds_are_all_looked_at() -> None:
    assert {layer.encoding.kind for layer in every_kind.EVERY} == {*ENCODINGS}
