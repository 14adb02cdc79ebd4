"""Values + spec → a QuantizedTensor with its error sums."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config import QuantizationConfig, QuantSpec, resolve_layer
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig, UnquantizableWeights
from arrowquant_dist.methods import NOTHING, Given, method_of, side_input_of
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.tensor.quantized import QuantizedTensor, row_nbytes
from arrowquant_dist.tensor.source import as_float32, check_finite, kernel_bits, matrix_shape, read_only

if TYPE_CHECKING:
    import torch

_NO_SCALES = np.empty(0, np.float32)
_KEPT_CHUNK = 1 << 20  # values of a kept layer that are converted and measured at a time


def quantize_tensor(
    weight: torch.Tensor | np.ndarray, config: QuantizationConfig, name: str = ""
) -> QuantizedTensor:
    """Quantizes one weight in memory, on the calling thread.

    weight: a CPU torch tensor (not copied where it is contiguous) or a numpy array, any dtype of DTYPES. name: what
    `mixed_precision_layers` and `overrides` are matched with. Tensors with fewer than 2 dimensions, integers and bools
    are kept, as in a checkpoint. The result shares no memory with `weight`. Raises UnquantizableWeights on NaN or inf.
    """
    values, shape, dtype = _as_bytes(weight)
    spec = resolve_layer(config, name, shape, dtype).spec
    side_input = side_input_of(spec.method)
    if side_input is not None:
        message = (
            f"{spec.method} needs {side_input.config_field}, which only checkpoints have; choose rtn or mse"
        )
        raise InvalidConfig(message, layer=name or None)
    quantized = quantize_values(values, shape, dtype, spec, layer=name or None)
    return replace(quantized, codes=values.copy()) if quantized.codes is values else quantized


def _as_bytes(weight: Any) -> tuple[np.ndarray, tuple[int, ...], str]:
    """(uint8 [nbytes], shape, dtype name) of a torch tensor or numpy array."""
    if isinstance(weight, np.ndarray):
        dtype = _known(weight.dtype.name)
        array = np.ascontiguousarray(weight, weight.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    else:
        import torch

        if not isinstance(weight, torch.Tensor):
            raise InvalidConfig(f"a weight is a torch tensor or a numpy array, not {type(weight).__name__}")
        dtype = _known(str(weight.dtype).removeprefix("torch."))
        array = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return array, tuple(int(n) for n in weight.shape), dtype


def _known(dtype: str) -> str:
    if dtype not in DTYPES:
        raise InvalidConfig(
            f"dtype {dtype} is not supported; convert the weight to one of {', '.join(DTYPES)}"
        )
    return dtype


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
    source's dtype are `values` itself, not a copy. given: what the spec's method is given besides.
    layer, layer_shape, first_value: for errors, the name, the whole layer's shape and where in it these values begin.
    allocate: memory for the codes.
    Raises UnquantizableWeights on NaN or inf, unless the spec keeps them.
    """
    if not DTYPES[dtype].is_float:
        return _raw(values, shape, dtype, spec.row_dims, None)
    if not spec.is_quantized or not values.size:
        return _keep(values, shape, dtype, spec, layer, layer_shape or shape, first_value)
    quantized = _quantize(values, shape, dtype, spec, given, allocate)
    if quantized is None:
        if not spec.keep_non_finite:
            check_finite(values, dtype, layer_shape or shape, first_value, layer)
            raise UnquantizableWeights(
                "has float64 values beyond float32, which no scale can represent; add it to mixed_precision_layers",
                layer=layer,
            )
        return _raw(values, shape, dtype, spec.row_dims, _measure(values, values, dtype, dtype))
    return quantized


def _quantize(
    values: np.ndarray, shape: tuple[int, ...], dtype: str, spec: QuantSpec, given: Given, allocate: Allocate
) -> QuantizedTensor | None:
    """None where a value is not finite in float32."""
    rows, columns = matrix_shape(shape, spec.row_dims)
    bits = read_only(kernel_bits(values, dtype)).reshape(rows, columns)
    width = row_nbytes(spec.quant_type, columns, dtype)
    codes = allocate(rows * width).reshape(rows, width)
    found = method_of(spec).quantize(bits, spec, codes, given)
    if found is None:
        return None
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


def _keep(
    values: np.ndarray,
    shape: tuple[int, ...],
    dtype: str,
    spec: QuantSpec,
    layer: str | None,
    layer_shape: tuple[int, ...],
    first_value: int,
) -> QuantizedTensor:
    """fp16 where the source is wider and every value is finite in fp16, else raw."""
    if not spec.keep_non_finite and values.size:
        check_finite(values, dtype, layer_shape, first_value, layer)
    if spec.quant_type != "none" and DTYPES[dtype].itemsize > 2:
        wide = values.view(DTYPES[dtype].bits)
        with np.errstate(over="ignore", invalid="ignore"):
            half = wide.astype(np.float16)
        if np.isfinite(half).all():
            stored = half.view(np.uint8)
            errors = _measure(values, stored, dtype, "float16")
            return QuantizedTensor(
                shape, dtype, "fp16", stored, _NO_SCALES, _NO_SCALES, -1, 0, spec.row_dims, errors
            )
    return _raw(values, shape, dtype, spec.row_dims, _measure(values, values, dtype, dtype))


def _raw(
    values: np.ndarray, shape: tuple[int, ...], dtype: str, row_dims: int, errors: ErrorSums | None
) -> QuantizedTensor:
    return QuantizedTensor(shape, dtype, "none", values, _NO_SCALES, _NO_SCALES, -1, 0, row_dims, errors)


def _measure(values: np.ndarray, stored: np.ndarray, dtype: str, stored_dtype: str) -> ErrorSums:
    """Error sums of a kept layer, in float64; NaN and inf count as 0, since they are stored byte for byte."""
    total = ErrorSums()
    wide, narrow = DTYPES[dtype].itemsize * _KEPT_CHUNK, DTYPES[stored_dtype].itemsize * _KEPT_CHUNK
    for k in range(-(-values.size // wide)):
        x = _as_float64(values[k * wide : (k + 1) * wide], dtype)
        d = x if stored is values else _as_float64(stored[k * narrow : (k + 1) * narrow], stored_dtype)
        e = x - d
        top = float(np.abs(e).max()) if e.size else 0.0
        with np.errstate(over="ignore"):  # squares of float64 values beyond float32
            total += ErrorSums(x.size, float(x @ x), float(d @ d), float(e @ e), top)
    return total


def _as_float64(values: np.ndarray, dtype: str) -> np.ndarray:
    wide = values.view("<f8") if dtype == "float64" else as_float32(values, dtype).astype(np.float64)
    return np.where(np.isfinite(wide), wide, 0.0)
