from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.export.compressed_tensors.packers import (
    Int8Weight,
    PackedWeight,
    ScaleDtype,
    packed_words,
    packed_zero_points,
    scale_bytes,
    scales_are,
)
from arrowquant_dist.export.tensors import Packer
from arrowquant_dist.tensor import QuantizedTensor
from tests.tensor.codes import v2_codes

_NAME = "model.layers.3.mlp.down_proj.weight"
_SHAPES = [(1, 1), (5, 7), (16, 64), (33, 96), (19, 30), (4, 31)]  # columns · bits, a multiple of 32 or not


def _codes(shape: tuple[int, int], bits: int, seed: int = 3) -> np.ndarray:
    """int8 [shape], all of the range."""
    rng = np.random.default_rng(seed)
    return rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape, np.int8)


def _rows(
    codes: np.ndarray, bits: int, scales: np.ndarray, zero_points: np.ndarray, axis: int = 0
) -> QuantizedTensor:
    """scales, zero_points: float32 [rows, groups], or [1] with axis -1."""
    group_size = codes.shape[1] // scales.shape[1] if scales.ndim == 2 and scales.shape[1] > 1 else 0
    return QuantizedTensor(
        codes.shape, "float32", f"int{bits}", v2_codes(codes, bits), scales.reshape(-1), zero_points.reshape(-1),
        axis, group_size,
    )  # fmt: skip


def _scales(rows: int, groups: int, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.001, 0.02, (rows, groups)).astype(np.float32)


_DTYPES = {
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


def _written(packer: Packer, rows: QuantizedTensor) -> dict[str, torch.Tensor]:
    """{name: tensor} as a reader of safetensors has it, packed in runs of the packer's multiple."""
    count = rows.matrix_shape[0]
    written = {}
    for index, tensor in enumerate(packer.tensors(_NAME, rows.shape)):
        if tensor.needs == "nothing":
            data = packer.pack(index, rows.rows(0, 1))
        else:
            step = packer.row_multiple
            runs = [rows.rows(start, min(start + step, count)) for start in range(0, count, step)]
            data = np.concatenate([packer.pack(index, run) for run in runs])
        assert data.dtype == np.uint8
        assert data.size == tensor.nbytes
        short = tensor.name.removeprefix("model.layers.3.mlp.down_proj.")
        written[short] = torch.frombuffer(bytearray(data.tobytes()), dtype=_DTYPES[tensor.dtype]).reshape(
            tensor.shape
        )
    return written


def _theirs(
    codes: np.ndarray, bits: int, scales: np.ndarray, zero_points: np.ndarray | None
) -> dict[str, torch.Tensor]:
    """compressed-tensors' own compressor, fed values that are these codes."""
    group = codes.shape[1] // scales.shape[1]
    by_group = scales.shape[1] > 1
    args = QuantizationArgs(
        num_bits=bits,
        type="int",
        strategy="group" if by_group else "channel",
        group_size=group if by_group else None,
        symmetric=zero_points is None,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    zeros = np.zeros_like(scales) if zero_points is None else zero_points
    wide = (codes - np.repeat(zeros, group, 1)).astype(np.float64) * np.repeat(scales, group, 1)
    state = {"weight": torch.from_numpy(wide.astype(np.float32)), "weight_scale": torch.from_numpy(scales)}
    if zero_points is not None:
        state["weight_zero_point"] = torch.from_numpy(zero_points.astype(np.int8))
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    compressed: dict[str, torch.Tensor] = compressor.compress(state, scheme)
    return compressed


def _assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape, name
        assert ours[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, "many"])
@pytest.mark.parametrize("zeros", ["symmetric", "whole"])
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_what_is_written_is_what_their_own_compressor_writes(
    shape: tuple[int, int], bits: int, groups: int | str, zeros: str
) -> None:
    count = 1 if groups == 1 else next(n for n in (3, 5, 7, 2, 31, 1) if shape[1] % n == 0)
    codes, scales = _codes(shape, bits), _scales(shape[0], count)
    zero_points = _codes((shape[0], count), bits, seed=9).astype(np.float32) if zeros == "whole" else None
    rows = _rows(codes, bits, scales, np.empty(0, np.float32) if zero_points is None else zero_points)
    group_size = shape[1] // count if count > 1 else 0
    packer = PackedWeight(bits, shape[0], group_size, symmetric=zero_points is None, scale_dtype="F32")
    _assert_equal(_written(packer, rows), _theirs(codes, bits, scales, zero_points))


@settings(max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 80),
    bits=st.sampled_from([2, 4, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_words_of_any_shape_are_theirs(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = _codes((rows, columns), bits, seed)
    ours = packed_words(_rows(codes, bits, _scales(rows, 1), np.empty(0, np.float32)), bits)
    assert ours.tobytes() == pack_to_int32(torch.from_numpy(codes), bits).numpy().tobytes()
    zeros = codes.astype(np.float32)
    theirs = pack_to_int32(torch.from_numpy(codes), bits, packed_dim=0)
    assert packed_zero_points(zeros, bits).tobytes() == theirs.numpy().tobytes()


def test_the_only_scale_of_a_layer_is_each_row_s() -> None:
    codes = _codes((6, 10), 4)
    rows = _rows(codes, 4, np.array([0.5], np.float32), np.array([-3.0], np.float32), axis=-1)
    written = _written(PackedWeight(4, 6, 0, symmetric=False, scale_dtype="F32"), rows)
    assert written["weight_scale"].tolist() == [[0.5]] * 6
    assert written["weight_zero_point"].tolist() == [[0x555555]]  # six times -3 + 8, and nothing beyond


def test_int8_codes_and_their_scales_are_written_as_they_are() -> None:
    codes, scales = _codes((5, 7), 8), _scales(5, 1)
    written = _written(Int8Weight("F32"), _rows(codes, 8, scales, np.empty(0, np.float32)))
    assert set(written) == {"weight", "weight_scale"}
    assert np.array_equal(written["weight"].numpy(), codes)
    assert np.array_equal(written["weight_scale"].numpy(), scales)


def test_scales_are_rounded_as_torch_rounds_them() -> None:
    """More of them than are rounded at once, and the last lot is a short one."""
    scales = np.concatenate([_scales(900, 40).reshape(-1), -_scales(1, 9).reshape(-1)]).astype(np.float32)
    for dtype, theirs in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        expected = torch.from_numpy(scales).to(theirs).view(torch.uint8).numpy()
        assert np.array_equal(scale_bytes(scales, dtype), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "holding"),
    [
        (0.5, {"F32", "BF16", "F16"}),
        (0.1, {"F32"}),
        (1 + 2**-7, {"F32", "BF16", "F16"}),
        (1 + 2**-8, {"F32", "F16"}),
        (2.0**17, {"F32", "BF16"}),
        (2.0**-30, {"F32", "BF16"}),
    ],
)
def test_a_dtype_holds_a_scale_or_does_not(value: float, holding: set[ScaleDtype]) -> None:
    scales = np.array([[0.25, value]], np.float32)
    dtypes: tuple[ScaleDtype, ...] = ("F32", "BF16", "F16")
    assert {dtype for dtype in dtypes if scales_are(scales, dtype)} == holding
