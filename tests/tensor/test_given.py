"""Weights of any kind that torch and numpy have: the right values, or one error that says what to pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist import QuantizationConfig, QuantizedTensor, quantize_tensor
from arrowquant_dist.errors import InvalidConfig

INT8 = QuantizationConfig()
VALUES = np.random.default_rng(3).standard_normal((6, 10)).astype(np.float32)


def _expected(values: np.ndarray) -> np.ndarray:
    """int8, symmetric, a scale a row, by the published formula in float64."""
    scales = (np.abs(values).max(1, keepdims=True) / 127).astype(np.float32)
    return np.asarray(np.clip(np.rint(values / scales), -128, 127) * scales.astype(np.float64))


class Labelled(torch.Tensor):
    """A subclass that keeps torch's behaviour, as those of torchvision do."""


def _read_only() -> np.ndarray:
    values = VALUES.copy()
    values.flags.writeable = False
    return values


def _record_view() -> np.ndarray:
    padded = np.zeros(60, [("before", "i2"), ("value", "<f4")])
    padded["value"] = VALUES.ravel()
    return padded["value"].reshape(6, 10)


GOOD: dict[str, Callable[[], Any]] = {
    "negated view": lambda: torch.imag(torch.complex(torch.zeros(6, 10), -torch.from_numpy(VALUES)).conj()),
    "with a gradient": lambda: torch.nn.Parameter(torch.from_numpy(VALUES.copy())),
    "inside a graph": lambda: torch.nn.Parameter(torch.from_numpy(VALUES.copy())) * 1,
    "transposed": lambda: torch.from_numpy(VALUES.T.copy()).t(),
    "every second": lambda: torch.from_numpy(np.repeat(VALUES, 2, 1))[:, ::2],
    "subclass": lambda: torch.from_numpy(VALUES.copy()).as_subclass(Labelled),
    "big-endian": lambda: VALUES.astype(">f4"),
    "Fortran order": lambda: np.asfortranarray(VALUES),
    "reversed": lambda: np.ascontiguousarray(VALUES[::-1])[::-1],
    "read-only": _read_only,
    "misaligned": _record_view,
    "matrix": lambda: np.asmatrix(VALUES),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", GOOD)
def test_the_values_count_and_not_how_they_lie_in_memory(kind: str) -> None:
    weight = GOOD[kind]()
    q = quantize_tensor(weight, INT8)
    assert q.shape == (6, 10)
    np.testing.assert_allclose(q.values(), _expected(VALUES), rtol=1e-6, atol=1e-7)


def test_an_expanded_tensor_has_all_its_values() -> None:
    q = quantize_tensor(torch.from_numpy(VALUES[:1]).expand(4, 10), INT8)
    np.testing.assert_allclose(q.values(), _expected(np.repeat(VALUES[:1], 4, 0)), rtol=1e-6)


def test_a_tensor_of_no_dimension_is_kept() -> None:
    for weight in (torch.tensor(0.5), np.array(0.5, np.float32)):
        q = quantize_tensor(weight, INT8)
        assert q.shape == ()
        assert not q.scales.size
        assert float(q.values()) == 0.5


def _freed() -> torch.Tensor:
    weight = torch.zeros(4, 4)
    weight.untyped_storage().resize_(0)
    return weight


def _fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(4, 4)


def _wrapped() -> torch.Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    made: torch.Tensor = TwoTensor(torch.zeros(4, 4), torch.zeros(4, 4))  # type: ignore[no-untyped-call]
    return made


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "meta": (lambda: torch.empty(4, 4, device="meta"), "meta device .* load them first"),
    "COO": (lambda: torch.eye(4).to_sparse(), r"layout sparse_coo; pass weight\.to_dense\(\)"),
    "CSR": (lambda: torch.eye(4).to_sparse_csr(), r"layout sparse_csr; pass weight\.to_dense\(\)"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)]),
        r"nested.*weight\.unbind\(\)",
    ),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged),
        r"nested.*weight\.unbind\(\)",
    ),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.zeros(4, 4), 0.1, 0, torch.qint8),
        r"pass weight\.dequantize\(\)",
    ),
    "complex": (lambda: torch.zeros(4, 4, dtype=torch.complex64), "dtype complex64 is not supported"),
    "freed": (_freed, "its memory was freed"),
    "fake": (_fake, "FakeTensor"),
    "wrapper": (_wrapped, "TwoTensor, a wrapper around"),
    "lazy": (torch.nn.UninitializedParameter, "not initialized yet"),
    "list": (lambda: [[1.0, 2.0]], r"not list; pass numpy\.asarray"),
    "None": (lambda: None, "not None"),
    "text": (lambda: "model.safetensors", "not str"),
    "scalar of numpy": (lambda: np.float32(1), r"not float32; pass numpy\.asarray"),
    "class": (lambda: torch.Tensor, "not _TensorMeta"),
    "masked": (lambda: np.ma.masked_array(VALUES, VALUES > 0), r"weight\.filled\(0\)"),
    "objects": (lambda: np.array([[1, None]], object), "dtype object is not supported"),
    "dates": (lambda: np.zeros((2, 2), "datetime64[s]"), "datetime64.* is not supported"),
    "records": (lambda: np.zeros((2, 2), [("a", "f4")]), "dtype void32 is not supported"),
    "texts": (lambda: np.array([["a", "b"]]), "dtype str32 is not supported"),
    "long double": (
        lambda: np.zeros((2, 2), np.longdouble),
        "is not supported; convert the weight to one of",
    ),
}


@pytest.mark.filterwarnings("ignore:.*(nested|quantize|Sparse|deprecat|prototype|beta).*")
@pytest.mark.parametrize("kind", BAD)
def test_what_has_no_values_of_its_own_is_one_error_that_says_what_to_pass(kind: str) -> None:
    make, said = BAD[kind]
    with pytest.raises(InvalidConfig, match=said) as caught:
        quantize_tensor(make(), INT8)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("int4", r"QuantizationConfig\(quant_type='int4'\)"),
        ({"quant_type": "int4"}, "from_dict"),
        (QuantizationConfig, r"an instance: QuantizationConfig\(\)"),
        (None, "config: must be a QuantizationConfig"),
        (4, "config: must be a QuantizationConfig"),
    ],
)
def test_what_is_no_config_is_refused(config: Any, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        quantize_tensor(VALUES, config)


@pytest.mark.parametrize("name", [3, None, b"w"])
def test_a_name_is_a_text(name: Any) -> None:
    with pytest.raises(InvalidConfig, match="name must be a string"):
        quantize_tensor(VALUES, INT8, name)


@pytest.fixture
def q() -> QuantizedTensor:
    return quantize_tensor(VALUES, INT8)


@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.dtype("float32"),
        torch.int8,
        torch.complex64,
        "int4",
        "nonsense",
        32,
        float,
        torch.qint8,
    ],
)
def test_a_dtype_that_nothing_can_be_decoded_to_is_refused(q: QuantizedTensor, dtype: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"pass torch\.float32 or torch\.bfloat16"):
        q.dequantize(dtype)
    with pytest.raises(InvalidConfig, match=r"pass torch\.float32 or torch\.bfloat16"):
        q.values(dtype)


def test_a_dtype_may_be_given_by_its_name(q: QuantizedTensor) -> None:
    assert torch.equal(q.dequantize("bfloat16"), q.dequantize(torch.bfloat16))
    assert q.dequantize().dtype == torch.float32
