"""Inputs times packed rows, in float32 or float64.

Decoding for BLAS takes a few hundredths of a product with hundreds of inputs. With a few inputs it is the decoding
that counts, so a large matrix is multiplied by kernels that read its codes once. A small one is decoded all the same:
what Numba takes of memory is more than all codes of a model of such matrices.
"""

from __future__ import annotations

import numpy as np
import torch

from arrowquant_dist.modules.decoding import decode_packed
from arrowquant_dist.modules.threads import split_rows
from arrowquant_dist.tensor.source import read_only

FEW = 64  # inputs; with more BLAS gains more than decoding into memory takes
LARGE = 1 << 20  # values of a matrix; less is decoded in a fifth of a millisecond
TILE_NBYTES = (
    16 << 20
)  # of values that are decoded together; smaller tiles take longer, by starts of BLAS's threads
_WORTH_A_THREAD = 2_000_000  # products: 50 µs or more, longer than it takes a thread to begin

_Packed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, scales, zero points


def multiply(
    values: torch.Tensor, packed: _Packed, bias: torch.Tensor | None, width: int, group: int
) -> torch.Tensor:
    """values [..., columns] · decoded rows + bias, summed in float32 (float64 where values are), rounded once to the
    dtype of the values. No gradient. Memory: the result, and a tile."""
    columns, rows = values.shape[-1], packed[0].shape[0]
    wide = torch.promote_types(values.dtype, torch.float32)
    inputs = values.detach().reshape(-1, columns).to(wide).contiguous()
    out = inputs.new_empty((inputs.shape[0], rows))
    is_on_cpu = inputs.device.type == "cpu" and wide == torch.float32
    if not columns:
        out.zero_()
    elif is_on_cpu and inputs.shape[0] <= FEW and rows * columns >= LARGE:
        _multiply_few(inputs, packed, width, group, out)
    else:
        _multiply_tiles(inputs, packed, width, group, out)
    if bias is not None:
        out += bias.detach()
    return out.to(values.dtype).reshape(*values.shape[:-1], rows)


def _multiply_tiles(inputs: torch.Tensor, packed: _Packed, width: int, group: int, out: torch.Tensor) -> None:
    rows, columns = out.shape[1], inputs.shape[1]
    step = max(1, TILE_NBYTES // (4 * columns))
    for start in range(0, rows, step):
        codes, scales, zero_points = (tensor[start : start + step] for tensor in packed)
        tile = decode_packed(codes, scales, zero_points, width, group, columns).to(inputs.dtype)
        torch.mm(inputs, tile.T, out=out[:, start : start + step])


def _multiply_few(inputs: torch.Tensor, packed: _Packed, width: int, group: int, out: torch.Tensor) -> None:
    from arrowquant_dist.kernels.products.rows import BLOCK, multiply_one, multiply_rows

    codes, scales, zero_points = (read_only(tensor.numpy()) for tensor in packed)
    values, result = inputs.resolve_neg().numpy(), out.numpy()
    columns = values.shape[1]

    def one(start: int, stop: int) -> None:
        scratch = np.empty(columns, np.uint8)
        multiply_one(codes, width, group, scales, zero_points, values[0], start, stop, scratch, result[0])

    def several(start: int, stop: int) -> None:
        scratch, rows = np.empty(columns + 8, np.uint8), np.empty((BLOCK, columns), np.float32)
        bits = rows.view(np.int32)
        multiply_rows(
            codes, width, group, scales, zero_points, values, start, stop, scratch, rows, bits, result
        )

    parts = max(1, min(torch.get_num_threads(), out.numel() * columns // _WORTH_A_THREAD))
    split_rows(one if len(values) == 1 else several, len(codes), parts, BLOCK)
