"""A QuantWeight stands for the values of its codes, and stays so whatever happens to its module."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist import QuantizationConfig, quantize_tensor
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules import QuantWeight
from tests.modules.matrices import random_matrix

SHAPES = [(5, 160, 0), (3, 160, 64), (4, 100, 32), (7, 33, 8), (2, 7, 5), (1, 1, 0), (3, 40, 64)]


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("zeros", ["none", "whole", "real", "far"])
@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
def test_values_are_those_of_the_formula_to_the_bit(
    rows: int, columns: int, group_size: int, bits: int, zeros: str
) -> None:
    matrix = random_matrix(rows, columns, bits, group_size, zeros)
    assert np.array_equal(matrix.weight.dequantize().numpy(), matrix.values)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("zeros", ["none", "real"])
def test_one_scale_for_all_is_one_a_row(bits: int, zeros: str) -> None:
    matrix = random_matrix(5, 21, bits, zeros=zeros, axis=-1)
    assert np.array_equal(matrix.weight.dequantize().numpy(), matrix.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_rounded_as_a_loader_does(dtype: torch.dtype) -> None:
    matrix = random_matrix(5, 300, 4, 128, "real")
    weight = matrix.weight
    assert torch.equal(weight.dequantize(dtype), matrix.packed.dequantize(dtype))
    assert torch.equal(weight.to(dtype).dequantize(), matrix.packed.dequantize(dtype))


def test_what_a_half_does_not_hold_becomes_its_largest_value() -> None:
    packed = replace(random_matrix(2, 8, 8).packed, scales=np.full(2, 1e6, np.float32))
    values = QuantWeight.of(packed).dequantize(torch.float16)
    assert torch.equal(values, packed.dequantize(torch.float16))
    assert values.isfinite().all()


@pytest.mark.parametrize("rows_columns", [(0, 8), (3, 0)])
def test_matrices_without_values_have_none(rows_columns: tuple[int, int]) -> None:
    weight = QuantWeight(*rows_columns, bits=4, group_size=32)
    assert tuple(weight.dequantize().shape) == rows_columns


def test_casting_changes_the_dtype_of_the_values_and_no_number() -> None:
    matrix = random_matrix(4, 64, 4, 32, "real")
    weight = matrix.weight.to(torch.bfloat16)
    assert weight.dtype == torch.bfloat16
    assert (weight.scales.dtype, weight.codes.dtype) == (torch.float32, torch.uint8)
    assert torch.equal(weight.float().dequantize(), matrix.decoded)
    assert torch.equal(weight.half().double().dequantize(), matrix.decoded.double())


def test_moving_goes_through_any_device() -> None:
    weight = random_matrix(4, 64, 4, 32).weight.to("meta")
    assert weight.device.type == "meta"
    empty = weight.to_empty(device="cpu")
    assert (empty.scales.dtype, empty.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda weight: pickle.loads(pickle.dumps(weight))])  # noqa: S301
def test_copies_have_the_same_values(copied) -> None:  # type: ignore[no-untyped-def]
    matrix = random_matrix(4, 70, 3, 32, "real")
    other = copied(matrix.weight)
    assert torch.equal(other.dequantize(), matrix.decoded)


def test_a_state_dict_goes_into_another_of_the_same_form() -> None:
    matrix = random_matrix(4, 70, 3, 32, "real")
    other = QuantWeight(4, 70, 3, 32, symmetric=False)
    other.load_state_dict(matrix.weight.state_dict())
    assert torch.equal(other.dequantize(), matrix.decoded)


@pytest.mark.parametrize(
    ("has", "takes"),
    [
        ((70, 3, 32), (70, 4, 32)),
        ((45, 4, 32), (45, 4, 40)),  # of equal shapes
        ((2, 3, 0), (2, 4, 0)),
        ((45, 4, 0), (46, 4, 0)),
    ],
)
def test_a_state_dict_of_another_form_is_refused(
    has: tuple[int, int, int], takes: tuple[int, int, int]
) -> None:
    state = QuantWeight(4, *has, symmetric=False).state_dict()
    with pytest.raises(RuntimeError, match=re.escape(f"are {[has[0], has[1], has[2] or has[0]]}, not")):
        QuantWeight(4, *takes, symmetric=False).load_state_dict(state)
    del state["form"]
    with pytest.raises(RuntimeError, match="are unknown, not"):
        QuantWeight(4, *has, symmetric=False).load_state_dict(state, strict=False)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("scales", torch.bfloat16),
        ("scales", torch.float64),
        ("zero_points", torch.float16),
        ("codes", torch.int8),
        ("form", torch.int32),
    ],
)
def test_a_state_dict_that_was_cast_is_refused(name: str, dtype: torch.dtype, assign: bool) -> None:  # noqa: FBT001
    matrix = random_matrix(4, 45, 4, 32, "real")
    state = dict(matrix.weight.state_dict())
    state[name] = state[name].to(dtype)
    weight = matrix.weight
    with pytest.raises(RuntimeError, match=f"{name} are {dtype}, not {getattr(weight, name).dtype}"):
        weight.load_state_dict(state, assign=assign)
    assert torch.equal(weight.dequantize(), matrix.decoded)


@pytest.mark.parametrize("missing", ["codes", "scales", "zero_points"])
def test_half_of_what_codes_stand_for_is_refused_where_not_all_has_to_be_there(missing: str) -> None:
    state = dict(random_matrix(4, 45, 4, 32, "real", seed=1).weight.state_dict())
    del state[missing]
    matrix = random_matrix(4, 45, 4, 32, "real")
    weight = matrix.weight
    with pytest.raises(RuntimeError, match=f"without their {missing};"):
        weight.load_state_dict(state, strict=False)
    assert torch.equal(weight.dequantize(), matrix.decoded)
    assert len(weight.load_state_dict({}, strict=False).missing_keys) == 4


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_numbers_are_float32_whatever_torch_s_default_is(default: torch.dtype) -> None:
    parts = [random_matrix(4, 45, 4, 32, "real", seed=seed) for seed in (0, 1)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        joined = QuantWeight.joined([(part.weight, range(4)) for part in parts])
        empty = QuantWeight(4, 45, 4, 32, symmetric=False)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(joined.dequantize(), torch.cat([part.decoded for part in parts]))
    empty.load_state_dict(parts[0].weight.state_dict())
    assert torch.equal(empty.dequantize(), parts[0].decoded)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_values_of_dtypes_that_no_layer_computes_with_are_refused(dtype: torch.dtype) -> None:
    weight = random_matrix(4, 45, 4, 32, "real").weight
    with pytest.raises(InvalidConfig, match=f"not the dtype {dtype}"):
        weight.to(dtype)
    assert weight.dtype == torch.float32


def test_what_quantize_tensor_gives_is_taken_over() -> None:
    values = torch.randn(16, 96)
    packed = quantize_tensor(values, QuantizationConfig("int8", per_channel=False, group_size=32))
    weight = QuantWeight.of(packed)
    assert weight.codes.data_ptr() == packed.codes.ctypes.data
    assert torch.equal(weight.dequantize(), packed.dequantize())


@pytest.mark.parametrize("shape", [(8,), (2, 3, 4)])
def test_what_is_no_matrix_of_codes_is_refused(shape: tuple[int, ...]) -> None:
    packed = quantize_tensor(torch.randn(shape), QuantizationConfig("int4"))
    with pytest.raises(InvalidConfig, match="only a matrix of codes"):
        QuantWeight.of(packed)


@pytest.mark.parametrize("given", [None, torch.zeros(2, 2)])
def test_what_is_not_quantized_is_refused(given: Any) -> None:
    with pytest.raises(InvalidConfig, match="codes have to be a QuantizedTensor"):
        QuantWeight.of(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", -1),
        ("columns", 2.5),
        ("bits", 5),
        ("group_size", -1),
        ("group_size", 1.5),
        ("dtype", torch.int8),
        ("dtype", "float32"),
    ],
)
def test_numbers_that_no_matrix_has_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=name):
        QuantWeight(**{"rows": 2, "columns": 2, "bits": 8, name: value})


def test_functions_of_torch_take_its_values() -> None:
    matrix = random_matrix(4, 32, 4, 32)
    values = torch.randn(3, 32)
    product = torch.nn.functional.linear(values, matrix.weight)  # type: ignore[arg-type]
    assert torch.equal(product, torch.nn.functional.linear(values, matrix.decoded))


@pytest.mark.parametrize("change", [torch.nn.init.normal_, torch.relu_])
def test_what_would_change_its_values_in_place_is_refused(change: Any) -> None:
    weight = random_matrix(4, 32, 4, 32).weight
    with pytest.raises(InvalidConfig, match=r"_ would change a weight .* dequantize\(\)"):
        change(weight)


@pytest.mark.parametrize("name", ["data", "stride", "T", "tolist", "copy_"])
def test_what_only_tensors_have_is_missing_and_the_error_says_what_to_do(name: str) -> None:
    weight = random_matrix(4, 32, 4, 32).weight
    assert not hasattr(weight, name)
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'; dequantize"):
        getattr(weight, name)
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        _ = weight.no_such
