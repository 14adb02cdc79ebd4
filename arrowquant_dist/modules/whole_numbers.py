"""Products of whole numbers: inputs are quantized to 8 bits on the fly, and multiplied by the codes as they are.

Sums of products equal those of int32 exactly, although BLAS computes them in float32: a run of at most 1024 columns
sums to at most 127 · 128 · 1024 < 2^24, below which float32 represents every whole number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from arrowquant_dist.modules.packed_rows import PackedRows
from arrowquant_dist.modules.tiles import code_tiles

_MOST = 127  # largest magnitude of a quantized input
_EXACT_COLUMNS = 1024


def quantize_inputs(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes inputs, float32 [n, columns]. Returns whole numbers in [-127, 127] as float32 [n, columns], and scales
    [n, 1]: max|x| / 127 of each input; 0 if it is all zeros, and NaN or inf if it contains one."""
    if not inputs.shape[1]:
        return inputs, inputs.new_zeros(inputs.shape[0], 1)
    scales = inputs.abs().amax(1, keepdim=True) / _MOST
    return (inputs / scales.where(scales > 0, 1)).round_().clamp_(-_MOST, _MOST), scales


def multiply_whole(values: torch.Tensor, packed: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns values [..., columns] · packed rows + bias, as QuantLinear defines it for activations="int8", rounded to
    the dtype of the values. Has no gradient. Takes memory for the result and one tile."""
    inputs = values.detach().reshape(math.prod(values.shape[:-1]), packed.columns)
    whole, own_scales = quantize_inputs(inputs.to(torch.float32))
    out = whole.new_zeros(whole.shape[0], len(packed))
    for rows, tile in code_tiles(packed):
        place = out[:, rows]
        for k, run in _runs(packed.columns, packed.group_size):
            sums = torch.mm(whole[:, run], tile[:, run].T)
            if packed.zero_points.shape[1]:
                sums -= whole[:, run].sum(1, keepdim=True) * packed.zero_points[rows, k]
            place += sums.mul_(packed.scales[rows, k])
    out *= own_scales
    if bias is not None:
        out += bias.detach()
    return out.to(values.dtype).reshape(*values.shape[:-1], len(packed))


def _runs(columns: int, group: int) -> Iterator[tuple[int, slice]]:
    """Yields runs of columns that share one scale and can be summed exactly, each with the number of its group."""
    for start in range(0, columns, group):
        stop = min(start + group, columns)
        for first in range(start, stop, _EXACT_COLUMNS):
            yield start // group, slice(first, min(first + _EXACT_COLUMNS, stop))
