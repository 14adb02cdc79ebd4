"""float8 weights with scales beside them: x = code · scale.

There is one scale per tensor, matrix of a stack, row, column, or block of 128 × 128 or what the config says. The
scales' names are in names.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.names import decoded_name
from arrowquant_dist.checkpoint.quantized.scales import check_scales, find_block
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.float8 import FLOAT8_CODES, Float8Blocks
from arrowquant_dist.encodings.rows import Block
from arrowquant_dist.errors import InvalidCheckpoint

DEFAULT_BLOCK = (128, 128)
MICROSCALED = (1, 32)  # mxfp8
_FBGEMM = "fbgemm_fp8"
_STACK_DIMS = 3


def add_float8(tensors: Tensors, config: ModelConfig, blocks: Sequence[Block]) -> None:
    """Adds the layers of float8 codes that have scales. blocks: block sizes from other parts of the config.

    Scales without codes are layers of their own; so are codes without scales, about which the plan asks. Raises
    InvalidCheckpoint, naming the scales, if they do not fit.
    """
    possible = [_block_size(config), *blocks, MICROSCALED]
    for codes in tensors.by_name.values():
        if codes.dtype not in FLOAT8_CODES or not codes.nbytes or not tensors.is_free(codes.name):
            continue
        scales = tensors.scales_of(codes.name)
        if scales is None or scales.nbytes == 0:
            continue
        if not codes.shape:
            refuse("a single float8 value with a scale is not supported; convert it to a float", codes)
        # uint8 scales are exponents, stored by writers that lack the dtype e8m0.
        dtype = "float8_e8m0fnu" if scales.dtype == "uint8" else scales.dtype
        if scales.dtype != "uint8":
            check_scales(scales)
        block = _find_block(codes, scales, config, possible)
        encoding = Float8Blocks(tensors.place(codes).dtype, block, tensors.place(scales, dtype))
        tensors.add(codes, decoded_name(codes.name), codes.shape, encoding, [scales.name])


def _find_block(codes: Layer, scales: Layer, config: ModelConfig, possible: Sequence[Block]) -> Block:
    shape = codes.shape
    if config.method == _FBGEMM and len(shape) == _STACK_DIMS and scales.shape == (shape[0], shape[2], 1):
        return shape[
            1
        ], 1  # FBGEMM stores experts transposed, [experts, in, out], with a scale for each output
    return find_block(shape, scales, possible)


def _block_size(config: ModelConfig) -> Block:
    """`weight_block_size` of the config, 128 × 128 if it has none."""
    given: Any = config.quantization.get("weight_block_size")
    if given is None:
        return DEFAULT_BLOCK
    if not (
        isinstance(given, list) and len(given) == 2 and all(type(size) is int and size > 0 for size in given)
    ):
        message = f"weight_block_size {given!r} is not a pair of positive integers; correct it"
        raise InvalidCheckpoint(message, uri=config.uri)
    return given[0], given[1]
