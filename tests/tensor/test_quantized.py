from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrowquant_dist.config import QuantSpec, half_spec, kept_spec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.tensor import QuantizedTensor, quantize_values, row_nbytes

_SPECS = {
    f"{quant_type} {scope} {'symmetric' if symmetric else 'asymmetric'}": QuantSpec(
        quant_type,
        per_channel=scope == "channel",
        group_size=8 if scope == "group" else 0,
        symmetric=symmetric,
        method="mse" if quant_type == "int2" else "rtn",
    )
    for quant_type in ("int8", "int4", "int3", "int2")
    for scope in ("channel", "group", "tensor")
    for symmetric in (True, False)
} | {"fp16": half_spec("float32"), "none": kept_spec()}
_FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def _weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(21))


def _quantized(weight: torch.Tensor, spec: QuantSpec) -> QuantizedTensor:
    values = weight.contiguous().reshape(-1).view(torch.uint8).numpy()
    return quantize_values(values, tuple(weight.shape), str(weight.dtype).removeprefix("torch."), spec)


def _with_row_dims(spec: QuantSpec, row_dims: int) -> QuantSpec:
    return QuantSpec(**{**spec.to_dict(), "row_dims": row_dims})


@pytest.mark.parametrize("spec", _SPECS.values(), ids=_SPECS)
@pytest.mark.parametrize(
    ("shape", "row_dims"), [((7, 21), 1), ((5, 3, 2, 4), 1), ((2, 3, 21), 2), ((6, 1), 1)]
)
def test_rows_decode_to_the_rows_of_the_whole(spec: QuantSpec, shape: tuple[int, ...], row_dims: int) -> None:
    q = _quantized(_weights(*shape), _with_row_dims(spec, row_dims))
    rows, columns = q.matrix_shape
    whole = q.values().reshape(rows, columns)
    for start, stop in ((0, rows), (0, 1), (2, 5), (rows - 1, rows), (3, 3)):
        part = q.rows(start, stop)
        assert part.shape == (stop - start, *shape[row_dims:])
        np.testing.assert_array_equal(part.values().reshape(-1, columns), whole[start:stop])
        np.testing.assert_array_equal(
            part.rows(0, part.shape[0]).values().reshape(-1, columns), whole[start:stop]
        )


def test_rows_share_memory() -> None:
    q = _quantized(_weights(4, 16), _SPECS["int4 group asymmetric"])
    part = q.rows(1, 3)
    for name in ("codes", "scales", "zero_points"):
        assert np.shares_memory(getattr(part, name), getattr(q, name))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 5), (5, 5)])
def test_rows_that_are_not_there_are_refused(start: int, stop: int) -> None:
    q = _quantized(_weights(4, 16), _SPECS["int8 channel symmetric"])
    with pytest.raises(IndexError, match="of 4"):
        q.rows(start, stop)


@pytest.mark.parametrize("spec", _SPECS.values(), ids=_SPECS)
@pytest.mark.parametrize("dtype", _FLOATS)
def test_values_are_the_float32_ones_rounded_to_the_dtype(spec: QuantSpec, dtype: str) -> None:
    q = _quantized(_weights(6, 19), spec)
    expected = torch.from_numpy(q.values("float32")).to(getattr(torch, dtype))
    assert torch.equal(q.dequantize(getattr(torch, dtype)).double(), expected.double())
    bits = q.values(dtype)
    assert bits.dtype == DTYPES[dtype].bits
    assert bits.shape == (6, 19)
    assert bits.tobytes() == expected.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("source", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("kind", ["int8 channel symmetric", "none"])
def test_finite_values_stay_finite_in_every_dtype(kind: str, source: str, dtype: str) -> None:
    top = torch.finfo(getattr(torch, source)).max if kind == "none" else 3.3e38
    weight = torch.tensor([[top, -top, top / 2], [1.0, -2.0, 70000.0]], dtype=getattr(torch, source))
    decoded = _quantized(weight, _SPECS[kind]).dequantize(getattr(torch, dtype)).double()
    assert decoded.isfinite().all()
    assert decoded[0, 0] == min(float(weight[0, 0]), torch.finfo(getattr(torch, dtype)).max) or kind != "none"
    assert (decoded[0, :2].sign() == weight[0, :2].sign()).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_inf_and_nan_of_a_kept_layer_stay_what_they_are(dtype: str) -> None:
    weight = torch.tensor([float("inf"), float("-inf"), float("nan"), 1.0], dtype=torch.float64)
    decoded = _quantized(weight, _SPECS["none"]).dequantize(getattr(torch, dtype)).double()
    assert torch.equal(decoded.nan_to_num(0.0, 1e9, -1e9), weight.nan_to_num(0.0, 1e9, -1e9))
    assert decoded[2].isnan()


@pytest.mark.parametrize("spec", _SPECS.values(), ids=_SPECS)
def test_decoded_tensors_are_the_caller_s_own(spec: QuantSpec) -> None:
    q = _quantized(_weights(3, 8), spec)
    first = q.dequantize()
    before = first.clone()
    second = q.dequantize()
    first.zero_()
    assert torch.equal(second, before)
    assert torch.equal(q.dequantize(), before)
    assert q.values().flags.writeable


@pytest.mark.parametrize("spec", _SPECS.values(), ids=_SPECS)
def test_read_only_codes_decode_as_writable_ones(spec: QuantSpec) -> None:
    """As they come out of a file: buffers of pyarrow, bytes, memory maps."""
    q = _quantized(_weights(5, 24), spec)
    codes, scales, zero_points = (
        np.frombuffer(a.tobytes(), a.dtype) for a in (q.codes, q.scales, q.zero_points)
    )
    read = replace(q, codes=codes, scales=scales, zero_points=zero_points)
    np.testing.assert_array_equal(read.values(), q.values())
    assert not codes.flags.writeable


@pytest.mark.parametrize("spec", _SPECS.values(), ids=_SPECS)
def test_values_into_writes_where_it_is_told(spec: QuantSpec) -> None:
    q = _quantized(_weights(5, 24), spec)
    place = np.full(5 * 24 * 2 + 16, 7, np.uint8)
    q.values_into(place[8:-8], "bfloat16")
    assert place[8:-8].tobytes() == q.values("bfloat16").tobytes()
    assert (place[:8] == 7).all()
    assert (place[-8:] == 7).all()


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0,)])
def test_empty_tensors_decode_to_empty_ones(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q = _quantized(torch.empty(*shape, dtype=dtype), _SPECS["int4 group symmetric"])
        assert q.nbytes == 0
        for wanted in (None, torch.float16, torch.float64):
            assert q.dequantize(wanted).shape == shape


@pytest.mark.parametrize(
    ("quant_type", "columns", "dtype", "nbytes"),
    [
        ("int8", 7, "float32", 7),
        ("int4", 7, "float32", 4),
        ("int3", 7, "float32", 3),
        ("int2", 7, "float32", 2),
        ("fp16", 7, "float32", 14),
        ("none", 7, "bfloat16", 14),
        ("none", 7, "float64", 56),
    ],
)
def test_bytes_of_a_stored_row(quant_type: str, columns: int, dtype: str, nbytes: int) -> None:
    assert row_nbytes(quant_type, columns, dtype) == nbytes
    spec = QuantSpec(quant_type, method="rtn" if quant_type.startswith("int") else "none")
    weight = _weights(3, columns).to(getattr(torch, dtype))
    assert _quantized(weight, spec).codes.nbytes == 3 * nbytes


def test_nbytes_counts_codes_scales_and_zero_points() -> None:
    assert _quantized(_weights(4, 16), _SPECS["int4 group asymmetric"]).nbytes == 4 * 8 + 2 * 4 * 8
    assert _quantized(_weights(4, 16), _SPECS["int8 tensor symmetric"]).nbytes == 4 * 16 + 4


def test_metrics_are_those_of_the_decoded_values() -> None:
    weight = _weights(8, 64)
    q = _quantized(weight, _SPECS["int4 group asymmetric"])
    w, d = weight.double().ravel(), q.dequantize().double().ravel()
    metrics = q.metrics
    assert metrics["cosine"] == pytest.approx(float(torch.nn.functional.cosine_similarity(w, d, 0)), rel=1e-6)
    assert metrics["precision_loss"] == pytest.approx(1 - metrics["cosine"])
    assert metrics["mse"] == pytest.approx(float(((w - d) ** 2).mean()), rel=1e-5)
    assert metrics["max_error"] == pytest.approx(float((w - d).abs().max()), rel=1e-6)
    assert metrics["sqnr_db"] == pytest.approx(
        float(10 * torch.log10((w @ w) / ((w - d) @ (w - d)))), rel=1e-5
    )
    assert q.rows(0, 1).metrics == {}
    assert q.to_dict()["cosine"] == metrics["cosine"]
