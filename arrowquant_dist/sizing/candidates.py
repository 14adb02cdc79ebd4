"""The ways in which a layer may be stored: steps of method `size`, plain types and groups, 16 bits, as it is."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.config import QuantSpec, half_spec
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.reduce.layer_types import EMBEDDINGS, layer_type

RATE = 0.1155  # squares of a step that a bit is worth: 2 ln 2 / 12, the slope of error by rate at fine steps
# Of MiniLM, by embedding cosine at 5.3 to 10.9 MB of entropy: steps of embeddings, at the row in the middle of a
# vocabulary (by logarithm), 2.4 times those of other layers; 1 costs .16 at 5.3 MB, 2 and 3.4 at most .015.
EMBEDDING_STEP = 2.4
ROW_EXPONENT = 0.15
_MIDDLE_ROW = 8000.0
_DIGITS = 5


def size_spec(block: RowBlock, quant_type: str, step: float) -> QuantSpec:
    """Method `size` at `step`, which is that of layers other than embeddings. block: of the layer."""
    exponent = 0.0
    if is_embedding(block):
        exponent, step = ROW_EXPONENT, step * EMBEDDING_STEP / _MIDDLE_ROW**ROW_EXPONENT
    rounded = float(f"{step:.{_DIGITS}g}")  # as it is written in a config
    spec = _plain(block, quant_type, 0, symmetric=True)
    return replace(spec, method="size", step=rounded, row_exponent=exponent, rate=RATE)


def finer_specs(block: RowBlock) -> list[QuantSpec]:
    """What has less error than the finest steps of int8 by row, and takes more."""
    return [
        replace(_plain(block, "int8", 0, symmetric=True), method="rtn"),
        *(replace(_plain(block, "int8", group, symmetric=True), method="rtn") for group in (128, 64, 32)),
        half_spec(block.layer.dtype, block.spec.row_dims),
    ]


def importance(block: RowBlock) -> float:
    """What a relative squared error of one value of the layer counts beside that of others: steps are in proportion to
    its inverse root."""
    return 1.0 / EMBEDDING_STEP**2 if is_embedding(block) else 1.0


def is_embedding(block: RowBlock) -> bool:
    return layer_type(block.layer.name) == EMBEDDINGS


def _plain(block: RowBlock, quant_type: str, group_size: int, *, symmetric: bool) -> QuantSpec:
    """group_size 0: one scale a row."""
    return replace(
        block.spec,
        quant_type=quant_type,
        per_channel=group_size == 0,
        group_size=group_size,
        symmetric=symmetric,
        integer_zero_points=False,
        method="mse",
    )
