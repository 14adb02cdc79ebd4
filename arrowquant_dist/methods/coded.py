"""Codes that are meant to be entropy coded, on gptq's target: what `gptq` does where its spec has a step.

One scale a row, step · rms of the row of W*, as method `size` has it of W: equal relative steps for all rows and layers
leave MiniLM a cosine of .976 at 8.6 MB where steps by the curvature of the loss leave .946.

Where a bit is worth `rate` squares of a step, averaged over columns, an error of column k costs D_k / mean(D) times its
square (D of H = L D Lᵀ, what GPTQ writes 1/U²): boundaries between codes move away from zero by what method `size`
moves them, times mean(D) / D_k. What that costs in error the columns that follow make up for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.methods.groups import code_limits
from arrowquant_dist.methods.size import outward_shifts
from arrowquant_dist.methods.statistics import Prepared

BEYOND = "its target, corrected for the quantized inputs, is beyond float32; add it to mixed_precision_layers"


@dataclass(frozen=True, slots=True, eq=False)
class InSteps:
    """A gptq.Rounding. scales: float32 [rows, 1]. shifts: float32 [columns], of a step, in the order in which columns
    are rounded."""

    spec: QuantSpec
    scales: np.ndarray
    zero_points: np.ndarray
    shifts: np.ndarray
    group: int

    @classmethod
    def choice(cls, spec: QuantSpec) -> Callable[[np.ndarray, Prepared], InSteps]:
        """How targets are rounded by `spec`. What it gives raises UnquantizableWeights."""

        def choose(target: np.ndarray, prepared: Prepared) -> InSteps:
            from arrowquant_dist.kernels.steps import target_steps

            rows, columns = target.shape
            scales = np.empty((rows, 1), np.float32)
            steps = np.full(rows, spec.step)
            if target_steps(target.view("<i4"), steps, code_limits(spec)[1], scales[:, 0]) >= 0:
                raise UnquantizableWeights(BEYOND, layer=prepared.layer)
            return cls(spec, scales, np.empty((rows, 0), np.float32), _shifts(spec, prepared), columns)

        return choose

    def round(
        self, prepared: Prepared, start: int, errors: np.ndarray, carried: np.ndarray, codes: np.ndarray
    ) -> None:
        """See gptq.Rounding.round."""
        from arrowquant_dist.kernels.gptq import round_columns_inwards

        shifts = self.shifts[start : start + len(codes)]
        own = self.scales[:, 0], shifts, *code_limits(self.spec)
        round_columns_inwards(prepared.factor.lower, start, errors, carried, *own, codes)


def _shifts(spec: QuantSpec, prepared: Prepared) -> np.ndarray:
    pivots = prepared.factor.pivots
    return outward_shifts(spec.rate, spec.step * (pivots.mean(dtype=np.float64) / pivots))
