"""Multiplies inputs by packed rows: in float32 or float64, or in 16 bits with many inputs where the machine can.

Decoding for BLAS takes a few hundredths of the time of a product with hundreds of inputs. With few inputs the decoding
dominates, so large matrices are multiplied by kernels that read the codes once. Small ones are decoded nevertheless:
Numba takes more memory than all codes of a model of such matrices.

Many 16-bit inputs are multiplied by values rounded to 16 bits, which are the values of the same model loaded decoded:
in float32, 256 bfloat16 inputs times 2048² values took 2.6 times as long as that model's product; so they take 1.3
times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch

from arrowquant_dist.kernels.products import BLOCK
from arrowquant_dist.modules.packed_rows import PackedRows
from arrowquant_dist.modules.threads import split_rows
from arrowquant_dist.modules.tiles import RowTile, decoded_tiles, tiles_by_kernel

FEW = 64  # inputs; above this, BLAS saves more time than decoding into memory takes
FEW_HALVES = (
    24  # 16-bit inputs; above this, a 16-bit product saves more than rounding the values to 16 bits takes
)
LARGE = 1 << 20  # values of a matrix; a smaller one is decoded in a fifth of a millisecond
_WORTH_A_THREAD = 2_000_000  # products: 50 µs or more, longer than a thread takes to start

# Capabilities in torch.cpu.get_capabilities of CPUs that multiply these dtypes natively.
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}


def multiply(values: torch.Tensor, packed: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns values [..., columns] · decoded rows + bias, summed in float32 (float64 for float64 values) and rounded
    once to the dtype of the values. Has no gradient. Takes memory for the result and one tile.

    In a 16-bit product, rows and bias are rounded to the dtype of the values first.
    """
    inputs = values.detach().reshape(math.prod(values.shape[:-1]), packed.columns)
    own = None if bias is None else bias.detach()
    product = _multiply_halves if is_in_halves(inputs) else _multiply_wide
    return product(inputs, packed, own).reshape(*values.shape[:-1], len(packed))


def is_in_halves(inputs: torch.Tensor) -> bool:
    """Returns whether inputs [n, columns] are multiplied in their own 16-bit dtype."""
    if inputs.dtype not in _INSTRUCTIONS or not inputs.shape[1]:
        return False
    return inputs.device.type != "cpu" or (inputs.shape[0] > FEW_HALVES and _multiplies(inputs.dtype))


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Returns whether torch uses native instructions of this CPU for products of a 16-bit dtype. Without them float32
    is faster: 256 float16 inputs times 2048² values took 52 ms on a Zen 4, and 15 ms in float32.

    A torch that does not report the CPU's capabilities is treated as one without such instructions.
    """
    tell = getattr(torch.cpu, "get_capabilities", None)
    if tell is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    found = tell()
    return any(found.get(name) is True for name in _INSTRUCTIONS[dtype])


def _multiply_halves(inputs: torch.Tensor, packed: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
    out = inputs.new_empty((inputs.shape[0], len(packed)))
    inputs = inputs.contiguous()
    own = None if bias is None else bias.to(out.dtype)
    for rows, tile in _tiles(packed, out.dtype):
        if own is None:
            torch.mm(inputs, tile.T, out=out[:, rows])
        else:
            torch.addmm(own[rows], inputs, tile.T, out=out[:, rows])
    return out


def _multiply_wide(inputs: torch.Tensor, packed: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
    wide = (inputs if inputs.itemsize >= 4 else inputs.float()).contiguous()
    out = wide.new_empty((wide.shape[0], len(packed)))
    if not packed.columns:
        out.zero_()
    elif wide.shape[0] <= FEW and _has_kernels(packed, wide.dtype):
        (_multiply_one if wide.shape[0] == 1 else _multiply_few)(wide, packed, out)
    else:
        for rows, tile in _tiles(packed, wide.dtype):
            torch.mm(wide, tile.T, out=out[:, rows])
    if bias is not None:
        out += bias
    return out if out.dtype == inputs.dtype else out.to(inputs.dtype)


def _tiles(packed: PackedRows, dtype: torch.dtype) -> Iterator[RowTile]:
    return (tiles_by_kernel if _has_kernels(packed, dtype) else decoded_tiles)(packed, dtype)


def _has_kernels(packed: PackedRows, dtype: torch.dtype) -> bool:
    is_large = len(packed) * packed.columns >= LARGE
    return is_large and packed.codes.device.type == "cpu" and dtype != torch.float64


def _multiply_one(inputs: torch.Tensor, packed: PackedRows, out: torch.Tensor) -> None:
    from arrowquant_dist.kernels.products.arranged import arranged_input
    from arrowquant_dist.kernels.products.rows import multiply_one

    codes, scales, zero_points = packed.arrays()
    values, result = inputs.resolve_neg().numpy()[0], out.numpy()[0]
    arranged, sums = arranged_input(values, packed.bits, packed.group_size, zero_points)
    given = (codes, packed.bits, packed.group_size, scales, zero_points, values, arranged, sums)

    def multiply_run(start: int, stop: int) -> None:
        multiply_one(*given, start, stop, np.empty(values.size, np.uint8), result)

    _split(multiply_run, 1, packed)


def _multiply_few(inputs: torch.Tensor, packed: PackedRows, out: torch.Tensor) -> None:
    from arrowquant_dist.kernels.products.rows import multiply_rows

    codes, scales, zero_points = packed.arrays()
    values, result, columns = inputs.resolve_neg().numpy(), out.numpy(), packed.columns
    given = (codes, packed.bits, packed.group_size, scales, zero_points, values)

    def multiply_run(start: int, stop: int) -> None:
        scratch, rows = np.empty(columns + 8, np.uint8), np.empty((BLOCK, columns), np.float32)
        multiply_rows(*given, start, stop, scratch, rows, rows.view(np.int32), result)

    _split(multiply_run, len(values), packed)


def _split(multiply_run: Callable[[int, int], None], inputs: int, packed: PackedRows) -> None:
    """Multiplies the rows on as many threads as the number of products justifies."""
    rows = len(packed)
    worth = inputs * rows * packed.columns // _WORTH_A_THREAD
    split_rows(multiply_run, rows, max(1, min(torch.get_num_threads(), worth)), BLOCK)
