"""How kernels are compiled: cached on disk, without the GIL, IEEE arithmetic unless said otherwise."""

from __future__ import annotations

import numpy as np
from numba import njit

# Without Numba's reference counts: kernels allocate nothing and look only at arrays that their caller holds, and
# counting each view of a row or group cost more than the work on it (int4 rtn: 700 against 2,000 Mparam/s).
kernel = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)

# Sums whose order, and whose fused multiply-adds, the compiler may choose: exact all the same (small integers), or
# metrics, which choose nothing.
any_order = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"}, _nrt=False)


@any_order
def plus(total: np.float32, value: np.float32) -> np.float32:
    return total + value


@any_order
def plus_product(total: np.float32, left: np.float32, right: np.float32) -> np.float32:
    return total + left * right
