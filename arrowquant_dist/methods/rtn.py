"""Round to nearest: the scales of the V2 format's formulas, from the extreme values of each row or group."""

from __future__ import annotations

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.groups import GroupArrays
from arrowquant_dist.methods.method import Found, Given


class Rtn:
    """`rtn` by row or group; the formulas are in kernels/rtn.py."""

    name = "rtn"
    side_input = None

    def quantize(
        self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, _given: Given, /
    ) -> Found | None:
        """See Method.quantize."""
        from arrowquant_dist.kernels.quantize import quantize_rtn_asymmetric, quantize_rtn_symmetric

        arrays = GroupArrays.of(bits, spec, codes)
        if spec.symmetric:
            bad_row = quantize_rtn_symmetric(*arrays.taken, *arrays.filled)
        else:
            bad_row = quantize_rtn_asymmetric(*arrays.taken, spec.integer_zero_points, *arrays.filled)
        return arrays.found(bad_row)
