"""Rows of an embedding whose errors make up for each other, by the model's sensitivity to them.

Let g be the gradient of a result of the model with respect to a row that was looked up, and G = E[g gᵀ] over results
and tokens (models/sensitivity.py). An error e of the row then changes results by e G eᵀ, with the same G for all rows:
G is to a row of an embedding what the Hessian of the inputs is to a row of a linear layer. So rows are rounded as gptq
does (methods/gptq.py), each with its own step: column by column, the one with the largest diagonal first, each code
making up for the errors before it, with boundaries between codes moved outwards as in methods/coded.py. The reported
errors are those of the weights, which this makes larger.

With only MiniLM's word embedding quantized, to the same bytes (2.25 bits a value), embedding cosines fall short of 1 by
.0044 instead of .0063, on quotations by .0049 instead of .0061; with the whole model quantized to 8.5 MB, by .0121
instead of .0135 (.0114 with a Huffman code for each compressed block).
Using only the sensitivity of the norm after the embedding changes nothing. Shrinking G by its own noise (Ledoit and
Wolf) before it is damped is no better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.method import Found
from arrowquant_dist.methods.size import outward_shifts
from arrowquant_dist.methods.statistics import TILE, Prepared, factored
from arrowquant_dist.methods.target_tiles import TargetTile

# As a fraction of the mean of the diagonal; G is from some thousand tokens. On MiniLM .01 to .1 are equally good.
_DAMP = 0.1
_NUMBER_NBYTES = 4
_NO_ZERO_POINTS = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """prepared: G, factored. factors: float32 [columns], in the order in which columns are rounded: mean(D) / D_k, by
    how much less than on average an error in each column counts."""

    prepared: Prepared
    factors: np.ndarray

    @classmethod
    def of(cls, squares: np.ndarray, layer: str) -> Sensitivity:
        """squares: G, float32 [columns, columns]; overwritten. Raises InvalidCheckpoint, naming the layer, if it holds
        NaN or inf or is not positive definite."""
        from arrowquant_dist.kernels.spans import first_non_finite

        if first_non_finite(squares.view("<i4")) >= 0:
            raise _unusable("holds NaN or inf", layer)
        order, factor = factored(squares, _DAMP)
        if factor is None:
            raise _unusable("is not positive definite", layer)
        pivots = factor.pivots
        factors = (pivots.mean(dtype=np.float64) / pivots).astype(np.float32)
        return cls(Prepared(layer, order, factor, None, is_seen=False), factors)


def sensitivity_nbytes(columns: int) -> int:
    """Memory of G, and of what is made of a tile of rows. columns: 0 if there is no sensitivity."""
    from arrowquant_dist.kernels.factor import FACTOR_BLOCK

    return _NUMBER_NBYTES * columns * (columns + 9 * TILE + 6 * FACTOR_BLOCK)


def in_sensitive_steps(
    bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, steps: np.ndarray, sensitivity: Sensitivity
) -> Found | None:
    """Like size.in_steps, with errors that make up for each other."""
    from arrowquant_dist.kernels.steps import target_steps

    scales, sums = np.empty((len(bits), 1), np.float32), np.zeros(4)
    if target_steps(bits, steps, code_limits(spec)[1], scales[:, 0]) >= 0:
        return None
    shifts = outward_shifts(spec.rate, steps)
    for start in range(0, len(bits), TILE):
        own = slice(start, start + TILE)
        rounding = _ByRow(spec, scales[own], shifts[own], sensitivity.factors, bits.shape[1])
        TargetTile(bits[own], sensitivity.prepared, None).quantize(rounding, spec, codes[own], sums)
    return Found(scales.reshape(-1), _NO_ZERO_POINTS, error_sums(bits.size, sums))


@dataclass(frozen=True, slots=True, eq=False)
class _ByRow:
    """A target_tiles.Rounding. scales: float32 [rows, 1]. shifts: float32 [rows], as fractions of a step, for a column
    whose error counts as much as on average. factors: as in Sensitivity."""

    spec: QuantSpec
    scales: np.ndarray
    shifts: np.ndarray
    factors: np.ndarray
    group: int

    @property
    def zero_points(self) -> np.ndarray:
        return np.empty((len(self.scales), 0), np.float32)

    def round(
        self, prepared: Prepared, start: int, errors: np.ndarray, carried: np.ndarray, codes: np.ndarray
    ) -> None:
        """See target_tiles.Rounds.round."""
        from arrowquant_dist.kernels.gptq import round_columns_by_row

        factors = self.factors[start : start + len(codes)]
        own = self.scales[:, 0], self.shifts, factors, *code_limits(self.spec)
        round_columns_by_row(prepared.factor.lower, start, errors, carried, *own, codes)


def _unusable(what: str, layer: str) -> InvalidCheckpoint:
    message = (
        f"its sensitivity {what}; calibrate again, or choose another method for the layer with an override"
    )
    return InvalidCheckpoint(message, layer=layer)
