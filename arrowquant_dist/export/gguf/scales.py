"""Scales of V2 as GGUF has them: in fp16, or not at all.

Rounding a scale moves every value of its group. As long as that is no more than half a step, which is what rounding a
value to a code may move it, the codes still say what they said; a scale beyond fp16's range (65,504), below its
precision (some 1e-5 and less), or a minimum far from 0 beside a small scale would make other weights of them.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.errors import UnquantizableWeights

_KEEP = "keep this layer in 16 bits when you quantize (mixed_precision_layers)"


def half_scales(scales: np.ndarray, largest: int, layer: str, *, rounded: bool) -> np.ndarray:
    """scales: float32, x = q · scale with |q| ≤ `largest`. Returns float16 [the same].

    UnquantizableWeights where that moves a value by more than half a step. rounded: by more than fp16 itself would,
    which is what `--requantize` allows, so that only scales beyond fp16's range are refused.
    """
    halves = _halves(scales)
    moved = np.abs(halves.astype(np.float64) - scales) * largest
    _check(scales, ~(moved <= np.abs(scales) / 2), halves, layer, rounded=rounded)
    return halves


def half_minima(
    scales: np.ndarray, zero_points: np.ndarray, bits: int, layer: str, *, rounded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """scales, zero_points: float32, x = (q - zero_point) · scale. Returns float16 scales and minima [the same].

    With u = q + 2^(bits-1) a value is u · scale + minimum. rounded: as `half_scales` has it.
    """
    minima = (-(2.0 ** (bits - 1)) - zero_points.astype(np.float64)) * scales
    halves, lowest = _halves(scales), _halves(minima)
    at_first = lowest.astype(np.float64) - minima
    at_last = at_first + (halves.astype(np.float64) - scales) * (2**bits - 1)
    moved = np.maximum(np.abs(at_first), np.abs(at_last))
    wrong = ~(moved <= np.abs(scales) / 2)
    _check(scales, wrong, np.where(np.isfinite(lowest), halves, lowest), layer, rounded=rounded)
    return halves, lowest


def _halves(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16)


def _check(scales: np.ndarray, wrong: np.ndarray, halves: np.ndarray, layer: str, *, rounded: bool) -> None:
    """halves: not finite where the scale, or the minimum, is beyond fp16's range. Raises for the first of `wrong`."""
    beyond = ~np.isfinite(halves)
    if beyond.any():
        raise UnquantizableWeights(
            f"the scale {scales[beyond][0]:.3g}, or its group's minimum, is beyond the range of fp16, in which GGUF "
            f"stores them; {_KEEP}, or export as compressed-tensors",
            layer=layer,
        )
    if wrong.any() and not rounded:
        raise UnquantizableWeights(
            f"in fp16, in which GGUF stores scales and minima, the group of scale {scales[wrong][0]:.3g} would lose "
            f"more than half a step; {_KEEP}, or let --requantize round it",
            layer=layer,
        )
