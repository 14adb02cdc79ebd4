"""Products of whole numbers: inputs are quantized to 8 bits on the way, and meet the codes as these are.

Sums of products are those of int32, exactly, though BLAS makes them in float32: a run of at most 1024 columns adds up
to 127 · 128 · 1024 < 2^24, below which float32 holds every whole number.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from arrowquant_dist.modules.decoding import unpack_codes

_MOST = 127  # of the magnitude of a quantized input
_EXACT_COLUMNS = 1024
_TILE_NBYTES = 16 << 20


def quantize_inputs(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """inputs: float32 [n, columns]. Returns whole numbers in [-127, 127] as float32 [n, columns], and scales [n, 1]:
    max|x| / 127 of each input, 0 where it is all zeros, NaN or inf where it has one."""
    if not inputs.shape[1]:
        return inputs, inputs.new_zeros(inputs.shape[0], 1)
    scales = inputs.abs().amax(1, keepdim=True) / _MOST
    return (inputs / scales.where(scales > 0, 1)).round_().clamp_(-_MOST, _MOST), scales


def multiply_whole(
    values: torch.Tensor,
    packed: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    bias: torch.Tensor | None,
    width: int,
    group: int,
) -> torch.Tensor:
    """values [..., columns] · packed rows + bias, as QuantLinear says for activations="int8"; rounded to the dtype of
    the values. No gradient. packed: codes, scales, zero points. Memory: the result, and a tile."""
    columns, rows = values.shape[-1], packed[0].shape[0]
    whole, own_scales = quantize_inputs(values.detach().reshape(-1, columns).to(torch.float32))
    out = whole.new_zeros(whole.shape[0], rows)
    step = max(1, _TILE_NBYTES // (4 * max(columns, 1)))
    for start in range(0, rows, step):
        codes, scales, zero_points = (tensor[start : start + step] for tensor in packed)
        tile = unpack_codes(codes, width, columns)
        place = out[:, start : start + step]
        for k, run in _runs(columns, group):
            sums = torch.mm(whole[:, run], tile[:, run].T)
            if zero_points.shape[1]:
                sums -= whole[:, run].sum(1, keepdim=True) * zero_points[:, k]
            place += sums.mul_(scales[:, k])
    out *= own_scales
    if bias is not None:
        out += bias.detach()
    return out.to(values.dtype).reshape(*values.shape[:-1], rows)


def _runs(columns: int, group: int) -> Iterator[tuple[int, slice]]:
    """Runs of columns that have one scale and can be added up exactly, each with the group that it is of."""
    for start in range(0, columns, group):
        stop = min(start + group, columns)
        for first in range(start, stop, _EXACT_COLUMNS):
            yield start // group, slice(first, min(first + _EXACT_COLUMNS, stop))
