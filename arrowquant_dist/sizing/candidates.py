"""The ways in which a layer may be stored: steps of method `size`, plain types and groups, 16 bits, as it is."""

from __future__ import annotations

import re
from collections.abc import Collection
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
_GROUPS = (128, 64, 32)
_FINE_GROUPS = (0, *_GROUPS, 16, 8)  # of int8; 0: one scale a row
# An output head: each of its rows meets every token, so they count alike. `output.weight` is Meta's name of Llama's.
_HEAD = re.compile(
    r"(?:^|\.)(?:lm_head|embed_out|output_projection|predictions\.decoder)(?:\.|$)|^output\.weight$"
)


def size_spec(block: RowBlock, quant_type: str, step: float, *, reads_rows: bool) -> QuantSpec:
    """Method `size` at `step`, which is that of layers other than embeddings. block: of the layer. reads_rows: whether
    that is an embedding."""
    exponent = 0.0
    if reads_rows:
        exponent, step = ROW_EXPONENT, step * EMBEDDING_STEP / _MIDDLE_ROW**ROW_EXPONENT
    rounded = float(f"{step:.{_DIGITS}g}")  # as it is written in a config
    spec = _plain(block, quant_type, 0, symmetric=True)
    return replace(spec, method="size", step=rounded, row_exponent=exponent, rate=RATE)


def grouped_specs(block: RowBlock) -> dict[str, tuple[list[QuantSpec], list[QuantSpec]]]:
    """{type below int8: (with its largest and smallest groups, all others)}, as a config without a size has them."""
    first = [(_GROUPS[0], False), (_GROUPS[-1], False)]
    every = [(group, symmetric) for group in _GROUPS for symmetric in (False, True)]
    rest = [each for each in every if each not in first]
    return {
        quant_type: (
            [_plain(block, quant_type, group, symmetric=symmetric) for group, symmetric in first],
            [_plain(block, quant_type, group, symmetric=symmetric) for group, symmetric in rest],
        )
        for quant_type in ("int4", "int3", "int2")
    }


def fine_specs(block: RowBlock) -> list[QuantSpec]:
    """int8 and 16 bits."""
    return [
        *(replace(_plain(block, "int8", group, symmetric=True), method="rtn") for group in _FINE_GROUPS),
        half_spec(block.layer.dtype, block.spec.row_dims),
    ]


def row_weight(row: float, *, reads_rows: bool) -> float:
    """What a relative squared error of a value of the row counts beside that of other layers: steps are in proportion
    to its inverse root."""
    return (max(row, 1.0) / _MIDDLE_ROW) ** (-2.0 * ROW_EXPONENT) / EMBEDDING_STEP**2 if reads_rows else 1.0


def is_embedding(name: str, names: Collection[str] = ()) -> bool:
    """Whether a layer's rows are read by their index. names: all that the source has for the layer, where it is tied.

    An output head that is no embedding at the same time is a matrix as any other.
    """
    return any(layer_type(each) == EMBEDDINGS and not _HEAD.search(each) for each in (name, *names))


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
        step=0.0,
        row_exponent=0.0,
        rate=0.0,
    )
