"""Which rows and columns share a scale: told by the shapes of codes and scales, where the config leaves it open."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arrowquant_dist.checkpoint.quantized.tensors import refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.rows import Block
from arrowquant_dist.errors import InvalidCheckpoint

SCALE_DTYPES = ("float32", "bfloat16", "float16", "float8_e8m0fnu")


def check_scales(scales: Layer) -> None:
    if scales.dtype not in SCALE_DTYPES:
        refuse(f"scales of {scales.dtype} are not supported, only {', '.join(SCALE_DTYPES)}", scales)


def find_block(shape: tuple[int, ...], scales: Layer, blocks: Sequence[Block]) -> Block:
    """(rows, columns) that share a scale of `scales`.

    shape: of the values. blocks: what else the scales may be for, besides the whole tensor, a matrix of a stack of
    them, or a row. Raises InvalidCheckpoint where their shape fits none.
    """
    lead, rows, columns = shape[:-2], shape[-2] if len(shape) > 1 else 1, shape[-1]
    if math.prod(scales.shape) == 1:
        return rows, columns
    if lead and scales.shape in (lead, (*lead, 1, 1)):
        return rows, columns
    if scales.shape in ((*lead, rows), (*lead, rows, 1)):
        return 1, columns
    for block in blocks:
        if scales.shape == (*lead, -(-rows // block[0]), -(-columns // block[1])):
            return block
    tried = ", ".join("x".join(map(str, block)) for block in blocks)
    message = (
        f"scales of shape {list(scales.shape)} fit no tensor of shape {list(shape)}: neither one a tensor nor one a row"
        + (f" nor one a block of {tried}" if tried else "")
        + "; config.json's quantization_config tells the block, or download the file again"
    )
    raise InvalidCheckpoint(message, layer=scales.name, uri=scales.uri)
