"""The scale and zero point of least squared error for each row or group: starts, then alternating least squares.

Other data-free ways that were tried, by what they leave of MiniLM's output: all matrices in groups of 128 with zero
points, mean cosine of embeddings on a third of the held-back texts / a third of 300 quotations, stored bytes within 2 %
of each other unless noted. None gains .01 on the held-back texts at more than one of 2, 3 and 4 bits, and coarse steps
in wide codes (methods/size.py) gain far more at 2 bits (0.78 at 5.5 MB):

                                                      int2           int3           int4
    this                                              .545 / .545    .856 / .844    .959 / .958
    HQQ (p = 0.7, 20 iterations, the range's scale)   .104 / .125    .776 / .757    .947 / .944
    Σ|x - x̂|^0.7 from here, by reweighting            .558 / .565    .851 / .846    .957 / .955
    Σ|x - x̂|^1.3                                      .546 / .558    .854 / .849    .958 / .957
    Σ|x - x̂|^3                                        .484 / .490    .850 / .837    .959 / .958
    Hadamard rotation of each 128 columns             .562 / .567    .865 / .854    .963 / .960
      the same, embeddings as they are                .541 / .544    .849 / .841    .960 / .959
    columns weighed by γ² + β² of the norm before     .582 / .582    .857 / .850    .959 / .957
    gptq on H = diag γ² + ββᵀ of the norm before      .557 / .551    .857 / .845    not measured
    gptq on H of Gaussian inputs of such norms        .510 / .487    .829 / .819    not measured
    symmetric                                         .540 / .531    .850 / .848    .945 / .944
      the same, rotated                               .498 / .494    .861 / .855    .960 / .958

(|x - x̂|^3 and symmetric codes take up to 7 % fewer bytes, HQQ up to 3 % fewer, 21 % at 2 bits.) A rotation, with
random signs, takes 10 % to 20 % off the squared error, but every reader would have to rotate the weights back. It makes
symmetric codes worse at 2 bits, and better by .012 at 3 and .015 at 4 bits, where zero points gain as much. γ and β are
those of the LayerNorm whose output is the input of query, key, value and the first feed-forward matrix; other layers
were not weighed.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.groups import GroupArrays
from arrowquant_dist.methods.method import Found, Given

_DESCENT_STEPS = 3

# Where the search for the least squared error starts, by bits: inverse scales as (multiple of 1 / max|x|, or, with zero
# points, of the inverse of half the range; multiple of 1 / rms), and an offset of the zero point in codes. Found by
# trial on MiniLM and Gaussian weights; more starts or more steps gain less than 0.0001 of mean cosine (at 4 bits a
# third ratio, or a second one with zero points, gained 0.00003 and took 20 % longer). The last start of each is rtn's
# scale, so that no group (of few different values, say) is worse off than with rtn.
_SYMMETRIC_STARTS = {
    2: [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0)],
    3: [*((sign * 3.5 / ratio, 0.0) for ratio in (1.0, 0.85, 0.7) for sign in (1, -1)), (3.0, 0.0)],
    4: [*((sign * 7.5 / ratio, 0.0) for ratio in (1.0, 0.9) for sign in (1, -1)), (7.0, 0.0)],
    8: [(127.0 / ratio, 0.0) for ratio in (0.95, 0.97, 0.99, 1.0)],
}
_ASYMMETRIC_STARTS = {
    2: [*((0.0, 1.0, offset) for offset in (-0.35, 0.0, 0.35)), (1.5, 0.0, 0.0)],
    3: [
        *((3.5 / ratio, 0.0, offset) for ratio in (0.95, 0.8) for offset in (-0.33, 0.0, 0.33)),
        (3.5, 0.0, 0.0),
    ],
    4: [
        *((7.5 / 0.92, 0.0, offset) for offset in (-0.33, 0.0, 0.33)),
        (7.5, 0.0, 0.0),
    ],
    8: [(127.5 / ratio, 0.0, 0.0) for ratio in (0.95, 0.97, 0.99, 1.0)],
}


class Mse:
    """`mse` by row or group; the search is in kernels/mse.py."""

    name = "mse"
    side_input = None

    def quantize(
        self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, _given: Given, /
    ) -> Found | None:
        """See Method.quantize."""
        from arrowquant_dist.kernels.quantize import quantize_mse_asymmetric, quantize_mse_symmetric

        arrays = GroupArrays.of(bits, spec, codes)
        search = (
            np.array((_SYMMETRIC_STARTS if spec.symmetric else _ASYMMETRIC_STARTS)[spec.bits]),
            _DESCENT_STEPS,
        )
        y = np.empty(arrays.group, np.float32)
        if spec.symmetric:
            bad_row = quantize_mse_symmetric(*arrays.taken, *search, *arrays.filled, y)
        else:
            whole = spec.integer_zero_points
            bad_row = quantize_mse_asymmetric(*arrays.taken, whole, *search, *arrays.filled, y)
        return arrays.found(bad_row)
