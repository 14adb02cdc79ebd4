"""Codes for entropy coding, chosen for gptq's target: what `gptq` does if its spec has a step.

Each row has one scale, step · rms of the row of W*, as method `size` has step · rms of the row of W. Equal relative
steps for all rows and layers leave MiniLM a cosine of .976 at 8.6 MB; steps by the curvature of the loss left .946.

A bit counts as much as an error of `rate` squared steps, averaged over columns. In column k an error costs
D_k / mean(D) times its square (D of H = L D Lᵀ; GPTQ writes it as 1/U²), so boundaries between codes move away from
zero by as much as in method `size`, times mean(D) / D_k. The columns that follow make up for the errors this adds.
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
    """A gptq.Rounding. scales: float32 [rows, 1]. shifts: float32 [columns], as fractions of a step, in the order in
    which columns are rounded."""

    spec: QuantSpec
    scales: np.ndarray
    zero_points: np.ndarray
    shifts: np.ndarray
    group: int

    @classmethod
    def choice(cls, spec: QuantSpec) -> Callable[[np.ndarray, Prepared], InSteps]:
        """Returns a function that chooses how a target is rounded by `spec`. It raises UnquantizableWeights if a scale
        is not finite."""

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
