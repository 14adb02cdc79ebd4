"""float8 weights with scales beside them: x = code · scale.

X_scale_inv is DeepSeek's, a scale each 128 × 128; X_scale, one a tensor, a row or a block, compressed-tensors'
float-quantized and others'; X.scale beside X.weight that of DeepSeek's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.scales import check_scales, find_block
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.encodings.float8 import FLOAT8_CODES, Float8Blocks
from arrowquant_dist.encodings.rows import Block
from arrowquant_dist.errors import InvalidCheckpoint

DEFAULT_BLOCK = (128, 128)
MICROSCALED = (1, 32)  # mxfp8


def add_float8(tensors: Tensors, config: ModelConfig, blocks: Sequence[Block]) -> None:
    """Adds the layers of float8 codes that have scales. blocks: that other parts of the config name.

    Codes without scales stay float8 layers, scales without codes layers of their own.
    Raises InvalidCheckpoint for scales that do not fit, naming them.
    """
    possible = [_block_size(config), *blocks, MICROSCALED]
    for codes in tensors.by_name.values():
        scales = tensors.scales_of(codes.name) if codes.dtype in FLOAT8_CODES and codes.nbytes else None
        if scales is None:
            continue
        if not codes.shape:
            refuse("a single float8 value with a scale is not supported; convert it to a float", codes)
        # A byte an exponent: what writers without the dtype e8m0 store.
        dtype = "float8_e8m0fnu" if scales.dtype == "uint8" else scales.dtype
        if scales.dtype != "uint8":
            check_scales(scales)
        block = find_block(codes.shape, scales, possible)
        encoding = Float8Blocks(tensors.place(codes).dtype, block, tensors.place(scales, dtype))
        tensors.add(codes, codes.name, codes.shape, encoding, [scales.name])


def _block_size(config: ModelConfig) -> Block:
    """`weight_block_size` of the config, 128 × 128 where it has none."""
    given: Any = config.quantization.get("weight_block_size")
    if given is None:
        return DEFAULT_BLOCK
    if not (
        isinstance(given, list) and len(given) == 2 and all(type(size) is int and size > 0 for size in given)
    ):
        message = f"weight_block_size {given!r} is no pair of sizes; correct it"
        raise InvalidCheckpoint(message, uri=config.uri)
    return given[0], given[1]
