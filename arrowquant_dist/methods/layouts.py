"""`gptq` for layers stored [in, out], as GPT-2's Conv1D and gpt-oss' experts are, instead of [out, in].

Groups run along a stored row. In such a layer a row holds one input's weights for all outputs, so a scale belongs to
one input and some or all outputs. Inputs that come later make up for the errors of one input, so rows are processed
here as columns are in gptq.py, in the order of the Hessian's diagonal, and outputs are independent of each other. The
differences are that scales are chosen for rows of the target across all outputs, and that a row's codes depend on all
rows before it: a matrix is quantized in one piece, and never cut into row blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.groups import code_limits
from arrowquant_dist.methods.method import Given
from arrowquant_dist.methods.statistics import TILE, LayerStatistics, Prepared
from arrowquant_dist.methods.target_tiles import Rounding, TargetPiece, TargetTile


def matrices_of(bits: np.ndarray, given: Given) -> Iterator[tuple[slice, Prepared, TargetPiece]]:
    """Like tiles_of, but yields whole matrices [in, out], which lie one below the other in `bits`."""
    statistics: LayerStatistics = given.side
    each = statistics.rows_each
    for start in range(0, len(bits), each):
        own, row = slice(start, start + each), given.row_start + start
        prepared = statistics.of(row // each)
        residual = statistics.residual(row, each) if prepared.is_seen else None
        yield own, prepared, _Matrix(bits[own], prepared, residual)


class _Matrix:
    """A TargetPiece: one matrix [in, out] on its way to codes, as tiles of some outputs each."""

    def __init__(self, bits: np.ndarray, prepared: Prepared, residual: np.ndarray | None) -> None:
        """bits: source bits [in, out], finite. residual: float32 [in, out], E[x̃ (r - r̃)ᵀ]."""
        self._bits = bits
        self._tiles = [
            TargetTile(
                _turned(bits[:, own]), prepared, None if residual is None else _turned(residual[:, own])
            )
            for own in self._spans()
        ]

    def _spans(self) -> Iterator[slice]:
        outputs = self._bits.shape[1]
        return (slice(start, min(start + TILE, outputs)) for start in range(0, outputs, TILE))

    def target(self) -> np.ndarray:
        """See TargetPiece.target. Returns float32 [in, out]."""
        found = np.empty(self._bits.shape, np.float32)
        for own, tile in zip(self._spans(), self._tiles, strict=True):
            found[:, own] = tile.target().T
        found.flags.writeable = False  # as all inputs of kernels are: one compilation serves all
        return found

    def quantize(self, rounding: Rounding, spec: QuantSpec, codes: np.ndarray, sums: np.ndarray) -> None:
        """See TargetPiece.quantize. codes: uint8 [in, row bytes]."""
        from arrowquant_dist.kernels.gptq import pack_and_measure

        inputs, outputs = self._bits.shape
        chosen = np.empty((outputs, inputs), np.uint8)
        for own, tile in zip(self._spans(), self._tiles, strict=True):
            chosen[own] = tile.rounded(_ToLevels.of(rounding, spec, own)).T
        scratch = np.empty((min(TILE, inputs), outputs), np.uint8)
        pack_and_measure(
            self._bits,
            rounding.group,
            rounding.scales,
            rounding.zero_points,
            chosen,
            spec.bits,
            scratch,
            codes,
            sums,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _ToLevels:
    """A Rounds for some outputs. scales, zero_points: float32 [in, outputs], one for each value."""

    spec: QuantSpec
    scales: np.ndarray
    zero_points: np.ndarray

    @classmethod
    def of(cls, rounding: Rounding, spec: QuantSpec, own: slice) -> _ToLevels:
        """rounding: that of the stored rows. own: which outputs."""
        groups = np.arange(own.start, own.stop) // rounding.group
        scales = np.ascontiguousarray(rounding.scales[:, groups])
        if not rounding.zero_points.shape[1]:
            return cls(spec, scales, np.zeros_like(scales))
        return cls(spec, scales, np.ascontiguousarray(rounding.zero_points[:, groups]))

    def round(
        self, prepared: Prepared, start: int, errors: np.ndarray, carried: np.ndarray, codes: np.ndarray
    ) -> None:
        """See Rounds.round."""
        from arrowquant_dist.kernels.gptq import round_columns

        inputs = prepared.order[start : start + len(codes)]
        limits = code_limits(self.spec)
        round_columns(
            prepared.factor.lower,
            start,
            errors,
            carried,
            inputs,
            self.scales,
            self.zero_points,
            *limits,
            codes,
        )


def _turned(values: np.ndarray) -> np.ndarray:
    """[in, out] transposed to [out, in], read-only like all values that a method is given."""
    found = np.ascontiguousarray(values.T)
    if found.base is not None:  # a single row or column, which is contiguous either way
        found = found.copy()
    found.flags.writeable = False
    return found
