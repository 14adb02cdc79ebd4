"""Finds which rows and columns share a scale, from the shapes of codes and scales, if the config does not tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arrowquant_dist.checkpoint.quantized.names import HALVES
from arrowquant_dist.checkpoint.quantized.tensors import refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.rows import Block
from arrowquant_dist.errors import InvalidCheckpoint

SCALE_DTYPES = ("float32", "bfloat16", "float16", "float8_e8m0fnu")


def check_scales(scales: Layer) -> None:
    if scales.dtype not in SCALE_DTYPES:
        known = ", ".join(SCALE_DTYPES)
        refuse(f"scales of {scales.dtype} are not supported, only {known}; convert them", scales)


def find_block(shape: tuple[int, ...], scales: Layer, blocks: Sequence[Block]) -> Block:
    """(rows, columns) that share one scale of `scales`.

    shape: of the values. blocks: blocks that the scales may be for, besides the whole tensor, a matrix of a stack, a
    row, a column ([…, 1, columns]; for a stack also [columns] and [columns, 1], unless there are as many columns as
    rows), and the halves of two matrices that were put together ([…, 2] of w13). Raises InvalidCheckpoint if the
    scales' shape fits none of these.
    """
    lead, rows, columns = shape[:-2], shape[-2] if len(shape) > 1 else 1, shape[-1]
    fitting: dict[tuple[int, ...], Block] = {lead: (rows, columns), (*lead, 1, 1): (rows, columns)}
    if lead:
        fitting |= {(*lead, 1): (rows, columns)}
        if rows % 2 == 0 and HALVES in scales.name:
            fitting |= {(*lead, 2): (rows // 2, columns), (*lead, 2, 1): (rows // 2, columns)}
        fitting |= {(*lead, columns): (rows, 1), (*lead, columns, 1): (rows, 1)}
    fitting |= {(*lead, 1, columns): (rows, 1), (*lead, rows): (1, columns), (*lead, rows, 1): (1, columns)}
    if math.prod(scales.shape) == 1:
        return rows, columns
    if scales.shape in fitting:
        return fitting[scales.shape]
    for block in blocks:
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        if scales.shape in ((*lead, *grid), (*lead, grid[0], 1, grid[1], 1)):
            return block
    tried = ", ".join("x".join(map(str, block)) for block in blocks)
    message = (
        f"scales of shape {list(scales.shape)} do not fit a tensor of shape {list(shape)}: neither one per tensor nor "
        "one per row"
        + (f" nor one per block of {tried}" if tried else "")
        + "; set the block in config.json's quantization_config, or download the file again"
    )
    raise InvalidCheckpoint(message, layer=scales.name, uri=scales.uri)
