"""Products with packed rows, decoded rows and looked-up rows as operations of torch: `arrowquant::linear` and others.

As operations they can be traced, exported and compiled, on any device, and have gradients with respect to the inputs
and the bias; packed rows have no gradient. codes, scales, zero_points: as in PackedRows. width: its bits. group: its
group size.
"""

from __future__ import annotations

from typing import Any

import torch

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules.packed_rows import PackedRows
from arrowquant_dist.modules.products import multiply
from arrowquant_dist.modules.tiles import decoded_tiles
from arrowquant_dist.modules.whole_numbers import multiply_whole


def decoded_rows(packed: PackedRows, dtype: torch.dtype) -> torch.Tensor:
    """Returns the values [rows, columns] as `dtype`, rounded from float32; in 16 bits they are clamped to finite
    ones."""
    values = packed.scales.new_empty((len(packed), packed.columns), dtype=dtype)
    for rows, tile in decoded_tiles(packed, dtype):
        values[rows] = tile
    return values


@torch.library.custom_op("arrowquant::decode", mutates_args=())
def decode(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    width: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Calls decoded_rows."""
    return decoded_rows(PackedRows(codes, scales, zero_points, width, group, columns), dtype)


@decode.register_fake
def _(codes: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, columns, dtype = others
    return codes.new_empty((codes.shape[0], columns), dtype=dtype)


@torch.library.custom_op("arrowquant::linear", mutates_args=())
def linear(
    values: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    bias: torch.Tensor | None,
    width: int,
    group: int,
) -> torch.Tensor:
    """Calls products.multiply. bias: [rows], floating point."""
    packed = PackedRows(codes, scales, zero_points, width, group, values.shape[-1])
    return multiply(values, packed, bias)


@linear.register_fake
def _product(values: torch.Tensor, codes: torch.Tensor, *_: Any) -> torch.Tensor:
    return values.new_empty((*values.shape[:-1], codes.shape[0]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG001
    values, codes, scales, zero_points, bias, *numbers = inputs
    ctx.save_for_backward(codes, scales, zero_points)
    ctx.numbers = (*numbers, values.shape[-1], torch.promote_types(values.dtype, torch.float32))
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Returns the gradients: for the values, grad · decoded rows; for the bias, the sum of grad."""
    *_, wide = ctx.numbers
    of_values = of_bias = None
    if ctx.needs_input_grad[0]:
        of_values = (grad.to(wide) @ decode(*ctx.saved_tensors, *ctx.numbers)).to(grad.dtype)
    if ctx.needs_input_grad[4]:
        of_bias = grad.reshape(-1, grad.shape[-1]).to(wide).sum(0).to(ctx.bias_dtype)
    return of_values, None, None, None, of_bias, None, None


linear.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("arrowquant::whole_linear", mutates_args=())
def whole_linear(
    values: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    bias: torch.Tensor | None,
    width: int,
    group: int,
) -> torch.Tensor:
    """Calls whole_numbers.multiply_whole. bias: [rows], floating point."""
    packed = PackedRows(codes, scales, zero_points, width, group, values.shape[-1])
    return multiply_whole(values, packed, bias)


whole_linear.register_fake(_product)


def _refuse(ctx: Any, grad: torch.Tensor) -> None:  # noqa: ARG001
    message = (
        "quantized activations have no gradient; leave out activations to train the layers before this one"
    )
    raise InvalidConfig(message)


whole_linear.register_autograd(_refuse)


@torch.library.custom_op("arrowquant::embedding", mutates_args=())
def embedding(
    indices: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    width: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns decoded rows [*indices.shape, columns] as `dtype`, decoding only those. Raises IndexError for an index
    beyond the rows."""
    wanted = indices.reshape(-1)
    codes, scales, zero_points = (numbers.index_select(0, wanted) for numbers in (codes, scales, zero_points))
    rows = decoded_rows(PackedRows(codes, scales, zero_points, width, group, columns), dtype)
    return rows.reshape(*indices.shape, columns)


@embedding.register_fake
def _(indices: torch.Tensor, codes: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, columns, dtype = others
    return codes.new_empty((*indices.shape, columns), dtype=dtype)
