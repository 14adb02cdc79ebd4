"""Weights that hypothesis makes, and the ways to quantize them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arrowquant_dist.config import BITS, QuantSpec
from arrowquant_dist.tensor import QuantizedTensor, quantize_values
from tests.kernels import reference

# The first example of a test may have to compile a kernel, which takes seconds.
numerics = settings(max_examples=150)

FLOAT32_MAX = float(np.finfo(np.float32).max)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_EDGES = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1e-40,
    -3e-39,
    1.1754943508222875e-38,
    FLOAT32_MAX,
    -FLOAT32_MAX,
    1.0,
    -1.0,
]


def _elements(top: float) -> st.SearchStrategy[float]:
    """float32 numbers up to about `top`, many of them round."""
    smooth = st.floats(-1, 1, width=32).map(lambda x: float(np.float32(x * top)))
    return st.one_of(smooth, st.integers(-8, 8).map(lambda n: float(np.float32(n / 8 * top))))


@st.composite
def matrices(draw: st.DrawFn, max_rows: int = 4, max_columns: int = 40) -> np.ndarray:
    """float32 [rows, columns]: of one magnitude, constant, about an offset, or of extremes in one heap."""
    shape = (draw(st.integers(1, max_rows)), draw(st.integers(1, max_columns)))
    kind = draw(st.sampled_from(["plain", "plain", "offset", "constant", "sparse", "tiny", "extreme"]))
    if kind == "constant":
        return np.full(shape, draw(st.one_of(st.sampled_from(_EDGES), _elements(3.0))), np.float32)
    if kind == "extreme":
        return draw(hnp.arrays(np.float32, shape, elements=st.sampled_from(_EDGES)))
    top = 1e-42 if kind == "tiny" else draw(st.sampled_from([1.0, 0.02, 1e-30, 1e4, 1e30, FLOAT32_MAX]))
    values = draw(hnp.arrays(np.float32, shape, elements=_elements(top)))
    if kind == "offset":
        return np.asarray(values / 8 + np.float32(top / 2), np.float32)
    if kind == "sparse":
        values[draw(hnp.arrays(np.bool_, shape))] = 0.0
    return values


@st.composite
def sources(draw: st.DrawFn, max_columns: int = 40) -> torch.Tensor:
    """A matrix in one of the kernels' source dtypes, finite in it."""
    dtype = draw(st.sampled_from(DTYPES))
    top = torch.finfo(dtype).max
    return torch.from_numpy(draw(matrices(max_columns=max_columns))).clamp(-top, top).to(dtype)


@st.composite
def specs(draw: st.DrawFn, method: str | None = None) -> QuantSpec:
    """Every type, scope and symmetry."""
    symmetric = draw(st.booleans())
    scope = draw(st.sampled_from(["channel", "tensor", "group"]))
    return QuantSpec(
        quant_type=draw(st.sampled_from(sorted(BITS))),
        per_channel=scope == "channel",
        group_size=draw(st.sampled_from([1, 3, 8, 16, 128])) if scope == "group" else 0,
        symmetric=symmetric,
        method=method or draw(st.sampled_from(["rtn", "mse"])),
        integer_zero_points=not symmetric and draw(st.booleans()),
    )


def group_spec(quant_type: str, group_size: int, method: str, zero_points: str = "none") -> QuantSpec:
    """zero_points: none, real or whole. group_size 0: a scale a row."""
    return QuantSpec(
        quant_type,
        per_channel=group_size == 0,
        group_size=group_size,
        symmetric=zero_points == "none",
        method=method,
        integer_zero_points=zero_points == "whole",
    )


def tensor_spec(quant_type: str, method: str, zero_points: str = "none") -> QuantSpec:
    """One scale for the tensor."""
    return replace(group_spec(quant_type, 0, method, zero_points), per_channel=False)


def source_bytes(source: torch.Tensor) -> np.ndarray:
    """uint8 [nbytes], read-only, so that a kernel that wrote into its input would fail."""
    values = source.contiguous().reshape(-1).view(torch.uint8).numpy().copy()
    values.flags.writeable = False
    return values


def quantized(source: torch.Tensor, spec: QuantSpec) -> QuantizedTensor:
    dtype = str(source.dtype).removeprefix("torch.")
    return quantize_values(source_bytes(source), tuple(source.shape), dtype, spec)


@dataclass(frozen=True)
class Group:
    """The values (float32) that share a scale, with their codes as the reference reads them."""

    values: np.ndarray
    codes: np.ndarray
    scale: np.float32
    zero_point: np.float32

    @property
    def decoded(self) -> np.ndarray:
        """float32, by the published formula."""
        return np.array([reference.decoded(int(q), self.scale, self.zero_point) for q in self.codes])

    @property
    def squared_error(self) -> float:
        """Σ(x - x̂)² in float64."""
        return float(((self.values.astype(np.float64) - self.decoded) ** 2).sum())


def groups(source: torch.Tensor, q: QuantizedTensor) -> list[Group]:
    """All groups of a quantized matrix, in the order of its scales; a per-tensor scale has one."""
    values = source.to(torch.float32).numpy()
    rows, columns = values.shape
    codes = reference.unpacked_rows(q.codes.tobytes(), rows, columns, BITS[q.quant_type])
    zero_points = q.zero_points if q.zero_points.size else np.zeros_like(q.scales)
    if q.quant_axis < 0:
        return [Group(values.ravel(), codes.ravel(), q.scales[0], zero_points[0])]
    pairs = zip(
        reference.groups_of(values, q.group_size), reference.groups_of(codes, q.group_size), strict=True
    )
    return [
        Group(x, q, scale, zero_point)
        for (x, q), scale, zero_point in zip(pairs, q.scales, zero_points, strict=True)
    ]


def codes(nbytes: int, spread: float, seed: int = 0) -> np.ndarray:
    """int8 codes of normal weights, as bytes."""
    normal = np.random.default_rng(seed).standard_normal(nbytes) * spread
    return np.clip(np.rint(normal), -127, 127).astype(np.int8).view(np.uint8)
