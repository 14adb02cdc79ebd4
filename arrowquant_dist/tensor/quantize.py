"""Values + spec → a QuantizedTensor with its error sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config import QuantizationConfig, QuantSpec, check_config, resolve_layer
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig, UnquantizableWeights
from arrowquant_dist.methods import NOTHING, Given, are_halves, method_of, side_input_of
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.tensor.given import check_name, given_bytes
from arrowquant_dist.tensor.kept import kept_tensor
from arrowquant_dist.tensor.quantized import QuantizedTensor, row_nbytes
from arrowquant_dist.tensor.source import as_float32, check_finite, kernel_bits, matrix_shape, read_only
from arrowquant_dist.tensor.trained import trained_tensor

if TYPE_CHECKING:
    import torch

_NO_SCALES = np.empty(0, np.float32)
_KEPT_CHUNK = 1 << 20  # values of a kept layer that are converted and measured at a time
_LEAST_OF_10_BITS = 0x0200  # 2^-15 as the bits of a float16: 512 steps of its smallest values
_INF = 0x7C00
_LARGEST_SUM = (
    1e290  # of squares: a receipt holds finite numbers alone, also once those of many blocks are added up
)


def quantize_tensor(
    weight: torch.Tensor | np.ndarray, config: QuantizationConfig, name: str = ""
) -> QuantizedTensor:
    """Quantizes one weight in memory, in the calling thread.

    weight: a torch tensor (not copied if it is contiguous) or a numpy array, of any dtype in DTYPES.
    config: a QuantizationConfig.
    name: matched with `mixed_precision_layers` and `overrides`.

    As in a checkpoint, vectors, integers, bools and layers whose name shows that activations are not multiplied with
    them are kept as they are. The result shares no memory with `weight`.

    Raises UnquantizableWeights for NaN or inf in a weight that is to be quantized, InvalidConfig for a tensor without
    values of its own (meta, sparse, nested, a wrapper) and for anything but a config.
    """
    check_config(config)
    check_name(name)
    values, shape, dtype = given_bytes(weight)
    spec = resolve_layer(config, name, shape, dtype).spec
    side_input = side_input_of(spec.method)
    if side_input is not None:
        message = (
            f"{spec.method} needs {side_input.config_field}, which only checkpoints have; choose rtn or mse"
        )
        raise InvalidConfig(message, layer=name or None)
    quantized = quantize_values(values, shape, dtype, spec, layer=name or None)
    return replace(quantized, codes=values.copy()) if quantized.codes is values else quantized


def quantize_values(
    values: np.ndarray,
    shape: tuple[int, ...],
    dtype: str,
    spec: QuantSpec,
    *,
    given: Given = NOTHING,
    layer: str | None = None,
    layer_shape: tuple[int, ...] | None = None,
    first_value: int = 0,
    allocate: Allocate = fresh,
) -> QuantizedTensor:
    """Quantizes or keeps one layer or row block.

    values: uint8 [nbytes], little-endian, C order, of `shape` and `dtype`; left untouched. Values that are kept in the
    source's dtype are `values` itself, not a copy. Of a spec that keeps the source's codes: the rows as `KeptRows` has
    them, whose memory the result shares; of one that is trained as `trained_tensor` has it. given: what the spec's
    method is given besides.
    layer, layer_shape, first_value: for errors, the name, the whole layer's shape and where in it these values begin.
    allocate: memory for the codes.
    Raises UnquantizableWeights on NaN or inf in what is to be quantized, unless the spec keeps them (what is kept may
    hold them: `errors` counts them), and where float16, which the spec asks for, does not hold a scale.
    """
    if spec.keeps_codes:
        return kept_tensor(values, shape, dtype, spec)
    if spec.is_trained:
        return trained_tensor(values, shape, dtype, spec)
    if not DTYPES[dtype].is_float or not spec.is_quantized or not values.size:
        return _keep(values, shape, dtype, spec)
    quantized = _quantize(values, shape, dtype, spec, given, layer, allocate)
    if quantized is None:
        if not spec.keep_non_finite:
            check_finite(values, dtype, layer_shape or shape, first_value, layer)
            raise UnquantizableWeights(
                "has float64 values beyond float32, which no scale can represent; add it to mixed_precision_layers",
                layer=layer,
            )
        return _raw(values, shape, dtype, spec.row_dims)
    return quantized


def _quantize(
    values: np.ndarray,
    shape: tuple[int, ...],
    dtype: str,
    spec: QuantSpec,
    given: Given,
    layer: str | None,
    allocate: Allocate,
) -> QuantizedTensor | None:
    """None where a value is not finite in float32."""
    rows, columns = matrix_shape(shape, spec.row_dims)
    bits = read_only(kernel_bits(values, dtype)).reshape(rows, columns)
    width = row_nbytes(spec.quant_type, columns, dtype)
    codes = allocate(rows * width).reshape(rows, width)
    found = method_of(spec).quantize(bits, spec, codes, given)
    if found is None:
        return None
    if spec.scale_dtype == "float16" and not are_halves(found.scales):
        raise UnquantizableWeights(
            "has scales that float16 cannot represent (above 65504, or far below 6e-8); add it to "
            "mixed_precision_layers when you quantize",
            layer=layer,
        )
    return QuantizedTensor(
        shape,
        dtype,
        spec.quant_type,
        codes.reshape(-1),
        found.scales,
        found.zero_points,
        spec.quant_axis,
        spec.stored_group_size,
        spec.row_dims,
        found.errors,
    )


def _keep(values: np.ndarray, shape: tuple[int, ...], dtype: str, spec: QuantSpec) -> QuantizedTensor:
    """fp16 where the spec asks for it and fp16 holds every value, else raw."""
    half = _as_fp16(values, dtype) if spec.quant_type == "fp16" else None
    if half is None:
        return _raw(values, shape, dtype, spec.row_dims)
    errors = _measure_fp16(values, dtype, half)
    stored = half.view(np.uint8)
    return QuantizedTensor(shape, dtype, "fp16", stored, _NO_SCALES, _NO_SCALES, -1, 0, spec.row_dims, errors)


def _raw(values: np.ndarray, shape: tuple[int, ...], dtype: str, row_dims: int) -> QuantizedTensor:
    errors = _measure_raw(values, dtype) if DTYPES[dtype].is_float else None
    return QuantizedTensor(shape, dtype, "none", values, _NO_SCALES, _NO_SCALES, -1, 0, row_dims, errors)


def _as_fp16(values: np.ndarray, dtype: str) -> np.ndarray | None:
    """float16 [values] of float32 or float64 ones; None where fp16 doesn't hold every one of them.

    It holds a value that it has exactly (0 and inf too), and one that it rounds to 10 bits of precision or more: from
    2^-15 up, where its steps are 2^-24.
    """
    wide = values.view(DTYPES[dtype].bits)
    half = np.empty(wide.size, np.float16)
    for start in range(0, wide.size, _KEPT_CHUNK):
        part = slice(start, start + _KEPT_CHUNK)
        with np.errstate(over="ignore", invalid="ignore"):  # a NaN, or a value beyond fp16, which becomes inf
            half[part] = wide[part]
        magnitude = half[part].view(np.uint16) & 0x7FFF
        in_doubt = (magnitude < _LEAST_OF_10_BITS) | (magnitude >= _INF)
        if (half[part][in_doubt] != wide[part][in_doubt]).any():
            return None
    return half


def _measure_raw(values: np.ndarray, dtype: str) -> ErrorSums:
    """Error sums of a layer that is stored byte for byte, in float64; NaN and inf count as 0."""
    total = ErrorSums()
    for x, non_finite in _chunks(values, dtype):
        with np.errstate(over="ignore"):  # squares of float64 values beyond float32
            sum_w2 = min(float(x @ x), _LARGEST_SUM)
        total += ErrorSums(x.size, sum_w2, sum_w2, 0.0, 0.0, *non_finite)
    return total


def _measure_fp16(values: np.ndarray, dtype: str, half: np.ndarray) -> ErrorSums:
    """As `_measure_raw`, of a layer that is stored as `half`."""
    total = ErrorSums()
    for index, (x, non_finite) in enumerate(_chunks(values, dtype)):
        d = half[index * _KEPT_CHUNK :][: x.size].astype(np.float64)
        if any(non_finite):
            d[~np.isfinite(d)] = 0.0
        e = x - d
        top = float(np.abs(e).max())
        total += ErrorSums(x.size, float(x @ x), float(d @ d), float(e @ e), top, *non_finite)
    return total


def _chunks(values: np.ndarray, dtype: str) -> Iterator[tuple[np.ndarray, tuple[int, int, int]]]:
    """float64 values, _KEPT_CHUNK at a time, with 0 for those that are not finite; and how many of these are NaN, inf
    and -inf."""
    nbytes = _KEPT_CHUNK * DTYPES[dtype].itemsize
    for start in range(0, values.size, nbytes):
        chunk = values[start : start + nbytes]
        x = chunk.view("<f8") if dtype == "float64" else as_float32(chunk, dtype).astype(np.float64)
        finite = np.isfinite(x)
        if finite.all():
            yield x, (0, 0, 0)
            continue
        nan, inf = int(np.isnan(x).sum()), int(np.isposinf(x).sum())
        yield np.where(finite, x, 0.0), (nan, inf, int(x.size - finite.sum()) - nan - inf)
