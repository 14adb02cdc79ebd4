"""Compares a stored layer with the source's: byte for byte, or within the error that the formulas allow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.format.encoder import BITS
from tests.fuzz.decoder import Block, DecodedLayer, as_float
from tests.fuzz.settings import says_nothing_of_single_layers
from tests.fuzz.sources import Tensor

_FLOATS = ("float64", "float32", "float16", "bfloat16")
_EPSILON = {"float64": 2.0**-24, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float64": 2.0**-126, "float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
_LARGEST = float(np.finfo(np.float32).max)


def check_layer(layer: DecodedLayer, tensor: Tensor, settings: dict[str, Any]) -> None:
    """Checks one layer. An AssertionError says what is wrong."""
    assert (layer.shape, layer.dtype) == (tensor.shape, tensor.dtype)
    types = {block.quant_type for block in layer.blocks}
    if tensor.dtype not in _FLOATS or len(tensor.shape) < 2 or not tensor.bits.size:
        assert types <= {"none"}, "what cannot be quantized is kept"
    if _is_plain_matrix(tensor) and tensor.is_finite and says_nothing_of_single_layers(settings):
        assert types == {settings["quant_type"]} or settings["quant_type"] == "fp16", types
    at = 0
    for block in layer.blocks:
        bits = tensor.bits[at : at + block.rows * layer.columns]
        at += bits.size
        if block.quant_type == "none":
            assert block.bits.tobytes() == bits.tobytes(), "kept values are the source's"
        elif block.quant_type == "fp16":
            x, kept = as_float(bits, tensor.dtype), as_float(block.bits, tensor.dtype)
            same = np.isclose(kept, x, rtol=2.0**-10, atol=0, equal_nan=True)
            assert same.all(), "fp16 holds 10 bits"
    if types & BITS.keys():
        check_values(layer, as_float(tensor.bits, tensor.dtype), settings)


def _is_plain_matrix(tensor: Tensor) -> bool:
    """Whether the tensor has a shape that no parameter kept by config/families.py has."""
    return tensor.dtype == "float64" and len(tensor.shape) == 2 and min(tensor.shape) > 130


def check_values(layer: DecodedLayer, x: np.ndarray, settings: dict[str, Any], coded: float = 0.0) -> None:
    """Checks the decoded values against x. coded: relative error of x itself."""
    x = np.asarray(x, np.float64).reshape(-1, layer.columns)
    at = 0
    quantized: list[tuple[Block, np.ndarray]] = []
    for block in layer.blocks:
        if block.codes is not None:
            quantized.append((block, x[at : at + block.rows]))
        at += block.rows
    for block, values in quantized:
        _check_bound(block, values, layer.dtype, settings, coded)
    _check_error(quantized, layer.dtype, settings)


def _check_bound(block: Block, x: np.ndarray, dtype: str, settings: dict[str, Any], coded: float) -> None:
    """Checks that |x - x̂| is at most scale / 2 and rounding, for values inside the range that the codes span."""
    assert block.codes is not None
    assert block.scales is not None
    assert block.zero_points is not None
    bits = BITS[block.quant_type]
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = ((q - block.zero_points) * block.scales for q in (qmin, qmax))
    found = as_float(block.bits, dtype).reshape(x.shape)
    inside = np.clip(x, np.minimum(low, high), np.maximum(low, high))
    half = np.abs(block.scales) * 0.5
    rounding = np.abs(block.scales) * (np.abs(block.zero_points) + qmax + 1) * 2.0**-21
    allowed = (
        half * (1 + 1e-5)
        + rounding
        + (np.abs(x) + half) * (2 * _EPSILON[dtype] + coded)
        + _SMALLEST[dtype] * 2
    )
    wrong = np.abs(inside - found) - allowed
    assert not (wrong > 0).any(), ("beyond half a scale", float(wrong.max()))
    by_rtn = settings.get("method") == "rtn" and says_nothing_of_single_layers(settings)
    if by_rtn and not settings.get("integer_zero_points"):
        beyond = np.abs(inside - x) - allowed
        assert not (beyond > 0).any(), ("rtn clips", float(beyond.max()))


def _check_error(quantized: list[tuple[Block, np.ndarray]], dtype: str, settings: dict[str, Any]) -> None:
    """Checks that no group's squared error exceeds the one that the formulas of rtn give, whatever the method."""
    if settings.get("integer_zero_points"):
        return
    for block, x in quantized:
        assert block.groups is not None
        assert block.zero_points is not None
        if block.groups.max(initial=0) == 0 and len(quantized) > 1:
            continue  # several blocks share one scale
        found = as_float(block.bits, dtype).reshape(x.shape)
        count = int(block.groups.max()) + 1
        error = np.bincount(block.groups.ravel(), ((x - found) ** 2).ravel(), count)
        reference = _rtn_error(x, block, count=count)
        slack = np.bincount(
            block.groups.ravel(),
            ((np.abs(x) * 2 * _EPSILON[dtype] + _SMALLEST[dtype]) ** 2).ravel(),
            count,
        )
        allowed = (np.sqrt(reference) * (1 + 1e-3) + np.sqrt(slack)) ** 2 + slack
        wrong = error - allowed
        assert not (wrong > 0).any(), (
            "a group is worse than rtn",
            int(wrong.argmax()),
            float(error[wrong.argmax()]),
            float(reference[wrong.argmax()]),
        )


def _rtn_error(x: np.ndarray, block: Block, *, count: int) -> np.ndarray:
    """Squared errors of rtn, summed up in float64 for each group."""
    assert block.groups is not None
    bits = BITS[block.quant_type]
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = np.full(count, math.inf), np.full(count, -math.inf)
    np.minimum.at(low, block.groups, x)
    np.maximum.at(high, block.groups, x)
    if not block.is_symmetric:
        scale = (high - low) / (qmax - qmin)
        zero = qmin - low / np.where(scale > 0, scale, 1)
    else:
        scale, zero = np.maximum(np.abs(low), np.abs(high)) / qmax, np.zeros(count)
    # Scales and zero points are stored as float32, and values are decoded in float32.
    rounding = scale * (np.abs(zero) + qmax + 1) * 2.0**-22
    scale = np.where(scale > 0, scale, 1)
    each_scale, each_zero = scale[block.groups], zero[block.groups]
    q = np.clip(np.round(x / each_scale + each_zero), qmin, qmax)
    error = np.abs(x - (q - each_zero) * each_scale) + rounding[block.groups]
    return np.bincount(block.groups.ravel(), (error**2).ravel(), count)
