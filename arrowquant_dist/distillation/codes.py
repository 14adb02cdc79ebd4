"""A layer's codes, scales and zero points in a form that gradients can change: values are made of latent codes, which
are rounded each time, and gradients pass the rounding unchanged (the straight-through estimator).

A latent code begins where the original's value w lies between the codes, at w / scale + zero point, if that rounds to
the dataset's code: the first codes to change are those whose original value is close to the next code. Where gptq chose
another code than w rounds to, for the sake of other values, the latent code begins at the centre of that code. From
the edge toward w, the smallest step would undo gptq's choice. In both cases nothing changes before the first step. A
latent code stays within `bound` of where it began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from arrowquant_dist.config import BITS
from arrowquant_dist.kernels.pack import unpack_row
from arrowquant_dist.tensor import QuantizedTensor
from arrowquant_dist.tensor.source import read_only

_WIDE = 15  # highest code minus lowest: that of int4, the narrowest type of entropy-coded layers
_COUNTED = 1 << 22  # number of codes that are counted at a time
# How far from its code, in steps, a latent code may begin. The signs of the first steps are noise, which changes codes
# that begin at the edge: the loss of MiniLM's int2 by gptq with 200 texts went from .685 to .680 in 75 steps with .49
# here, and to .656 in 50 steps with .4.
_INSIDE = 0.45


@dataclass(frozen=True, slots=True)
class CodesForm:
    """The properties of a layer's codes that do not change.

    shape, dtype: those of the layer. rows, columns: those of its matrix. group: number of values in a row that share a
    scale. qmin, qmax: lowest and highest code. has_one_scale: whether the whole layer has one scale. is_symmetric:
    whether there are no zero points. whole: whether zero points stay whole numbers. scale_dtype: dtype that scales are
    rounded to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int
    columns: int
    group: int
    qmin: int
    qmax: int
    has_one_scale: bool
    is_symmetric: bool
    whole: bool
    scale_dtype: torch.dtype

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group)

    @property
    def is_entropy_coded(self) -> bool:
        """Whether codes are symmetric, with a scale a row, in a type wider than they need, as method `size` stores
        layers."""
        is_wide = self.qmax - self.qmin >= _WIDE
        return is_wide and self.is_symmetric and self.groups == 1 and not self.has_one_scale

    @classmethod
    def of(cls, stored: QuantizedTensor) -> CodesForm:
        rows, columns = stored.matrix_shape
        half = 1 << (BITS[stored.quant_type] - 1)
        zeros, scales = stored.zero_points, torch.from_numpy(stored.scales.copy())
        is_short = bool((scales.bfloat16().float() == scales).all())
        return cls(
            shape=stored.shape,
            dtype=getattr(torch, stored.dtype),
            rows=rows,
            columns=columns,
            group=min(stored.group_size, columns) or columns,
            qmin=-half,
            qmax=half - 1,
            has_one_scale=stored.quant_axis < 0,
            is_symmetric=not zeros.size,
            whole=bool(zeros.size) and bool((zeros == np.rint(zeros)).all()),
            scale_dtype=torch.bfloat16 if is_short else torch.float32,
        )


class TrainedCodes:
    """Codes, scales and zero points of a layer, with leaves that an optimizer changes.

    offsets: float32 [rows, groups · group], distance of latent codes from where they began (padded: the last group of a
    row may be short). log_scales: float32 [rows or 1, groups], logarithms of factors of the scales. zero_points: same
    shape; None where symmetric.
    """

    def __init__(self, stored: QuantizedTensor, original: torch.Tensor) -> None:
        """original: the original's values of the layer, of its shape."""
        form = self.form = CodesForm.of(stored)
        codes = self._grouped(torch.from_numpy(_unpacked(stored)).float())
        scale_rows = 1 if form.has_one_scale else form.rows
        self._scales = torch.from_numpy(stored.scales.reshape(scale_rows, form.groups).copy())
        zeros = (
            stored.zero_points.reshape(scale_rows, form.groups).copy() if stored.zero_points.size else None
        )
        self.zero_points = None if zeros is None else torch.from_numpy(zeros).requires_grad_()
        self._start = _starts(
            self._grouped(original.float().reshape(form.rows, form.columns)),
            codes,
            self._scales[..., None],
            0.0 if zeros is None else torch.from_numpy(zeros)[..., None],
            form,
        )
        self.offsets = torch.zeros(form.rows, form.groups * form.group).requires_grad_()
        self.log_scales = torch.zeros_like(self._scales).requires_grad_()

    @property
    def leaves(self) -> dict[str, torch.Tensor]:
        """The leaves by their names in a checkpoint."""
        found = {"offsets": self.offsets, "log_scales": self.log_scales}
        return found if self.zero_points is None else {**found, "zero_points": self.zero_points}

    def values(self) -> torch.Tensor:
        """The values as a reader decodes them, of the layer's shape and dtype."""
        found = _decoded(self._start, self._offsets, self.scales(), self._zeros(), self.form)
        return self._ungrouped(found).to(self.form.dtype).reshape(self.form.shape)

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Rows of the values, [numbers, columns]. numbers: int64, without repetitions. Gradients are sparse."""
        form = self.form

        def looked_up(leaf: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.embedding(numbers, leaf, sparse=True)

        def of_scales(leaf: torch.Tensor) -> torch.Tensor:
            return leaf if form.has_one_scale else looked_up(leaf)

        zeros = None if self.zero_points is None else self._rounded_zeros(of_scales(self.zero_points))
        scales = self._made_scales(of_scales(self._scales), of_scales(self.log_scales))
        offsets = looked_up(self.offsets).reshape(-1, form.groups, form.group)
        found = _decoded(self._start[numbers], offsets, scales, zeros, form)
        return self._ungrouped(found).to(form.dtype)

    def scales(self) -> torch.Tensor:
        return self._made_scales(self._scales, self.log_scales)

    def bound(self, most: float, rows: torch.Tensor | None = None) -> None:
        """After a step: limits offsets to [-most, most]. rows: rows that the step may have changed; None: all."""
        with torch.no_grad():
            if rows is None:
                self.offsets.clamp_(-most, most)
            else:
                self.offsets[rows] = self.offsets[rows].clamp_(-most, most)

    def counts(self) -> torch.Tensor:
        """int64 [qmax - qmin + 1]: number of occurrences of each code."""
        form = self.form
        found = torch.zeros(form.qmax - form.qmin + 1, dtype=torch.int64)
        step = max(1, _COUNTED // form.columns)
        with torch.no_grad():
            for start in range(0, form.rows, step):
                rows = slice(start, start + step)
                codes = self._ungrouped(_rounded(self._start[rows], self._offsets[rows], form))
                found += torch.bincount((codes.reshape(-1) - form.qmin).int(), minlength=len(found))
        return found

    @property
    def gradient(self) -> torch.Tensor | None:
        """The gradient of the offsets, without rows that have none; None before a step."""
        found = self._gradient()
        return found.values() if found is not None and found.is_sparse else found

    def add_gradient(self, slopes: torch.Tensor) -> None:
        """Adds to the gradient of the offsets, in rows that have one. slopes: float32 [qmax - qmin + 1], what to add
        for each code."""
        found = self._gradient()
        if found is None:
            return
        with torch.no_grad():
            rows = found.indices()[0] if found.is_sparse else slice(None)
            codes = _rounded(self._start[rows], self._offsets[rows], self.form) - self.form.qmin
            added = slopes[codes.reshape(len(codes), -1).int()]
            (found.values() if found.is_sparse else found).add_(added)

    def _gradient(self) -> torch.Tensor | None:
        """The gradient of the offsets; a sparse one is coalesced, so that it has each row once."""
        found = self.offsets.grad
        if found is not None and found.is_sparse:
            found = self.offsets.grad = found.coalesce()
        return found

    def found(self) -> dict[str, torch.Tensor]:
        """The values to store: codes int8 [rows, columns], scales and zero_points float32 [rows · groups]."""
        with torch.no_grad():
            codes = self._ungrouped(_rounded(self._start, self._offsets, self.form)).to(torch.int8)
            found = {"codes": codes, "scales": self.scales().reshape(-1).clone()}
            zeros = self._zeros()
            if zeros is not None:
                found["zero_points"] = zeros.reshape(-1).clone()
        return found

    @property
    def _offsets(self) -> torch.Tensor:
        return self.offsets.reshape(self._start.shape)

    def _zeros(self) -> torch.Tensor | None:
        return None if self.zero_points is None else self._rounded_zeros(self.zero_points)

    def _made_scales(self, first: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
        """Gradients bypass the rounding; otherwise they would be rounded too, anew for each slice of a batch."""
        exact = first * logs.exp()
        return exact + (exact.to(self.form.scale_dtype).float() - exact).detach()

    def _rounded_zeros(self, zeros: torch.Tensor) -> torch.Tensor:
        if not self.form.whole:
            return zeros
        return zeros + (zeros.round().clamp(self.form.qmin, self.form.qmax) - zeros).detach()

    def _grouped(self, values: torch.Tensor) -> torch.Tensor:
        form = self.form
        lacking = form.groups * form.group - form.columns
        padded = torch.nn.functional.pad(values, (0, lacking)) if lacking else values
        return padded.reshape(form.rows, form.groups, form.group)

    def _ungrouped(self, values: torch.Tensor) -> torch.Tensor:
        return values.reshape(len(values), -1)[:, : self.form.columns]


def _unpacked(stored: QuantizedTensor) -> np.ndarray:
    """The codes, int8 [rows, columns]."""
    rows, columns = stored.matrix_shape
    if BITS[stored.quant_type] == 8:
        return stored.codes.view(np.int8).reshape(rows, columns)
    packed = read_only(stored.codes).reshape(rows, -1)
    codes = np.empty((rows, columns), np.uint8)
    for row in range(rows):
        unpack_row(packed[row], BITS[stored.quant_type], codes[row])
    return codes.view(np.int8)


def _starts(
    original: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | float,
    form: CodesForm,
) -> torch.Tensor:
    latent = (original / scales + zeros).nan_to_num_(0.0)  # with a scale of 0, all codes have the same value
    is_rounded = latent.round().clamp_(form.qmin, form.qmax) == codes
    between = (latent - codes).clamp_(-_INSIDE, _INSIDE)
    return codes + torch.where(is_rounded, between, 0.0)


def _rounded(start: torch.Tensor, offsets: torch.Tensor, form: CodesForm) -> torch.Tensor:
    return (start + offsets).round_().clamp_(form.qmin, form.qmax)


def _decoded(
    start: torch.Tensor,
    offsets: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    form: CodesForm,
) -> torch.Tensor:
    found: torch.Tensor = _Decode.apply(start, offsets, scales, zeros, form)  # type: ignore[no-untyped-call]
    return found


class _Decode(torch.autograd.Function):
    """(code - zero point) · scale, computed in the order in which readers do (kernels/decode.py)."""

    @staticmethod
    def forward(
        ctx: Any,
        start: torch.Tensor,
        offsets: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        form: CodesForm,
    ) -> torch.Tensor:
        shifted = _rounded(start, offsets, form)
        if zeros is not None:
            shifted -= zeros[..., None]
        ctx.save_for_backward(shifted, scales)
        ctx.has_zeros = zeros is not None
        return shifted * scales[..., None]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        shifted, scales = ctx.saved_tensors
        of_scales = _summed(torch.linalg.vecdot(gradient, shifted), scales)
        of_zeros = _summed(gradient.sum(-1) * scales, scales).neg_() if ctx.has_zeros else None
        return None, gradient * scales[..., None], of_scales, of_zeros, None


def _summed(found: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[rows, groups], or the sum over rows where all rows share their scales."""
    return found if len(like) == len(found) else found.sum(0, keepdim=True)
