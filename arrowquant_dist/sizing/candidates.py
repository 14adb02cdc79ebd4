"""The ways in which a layer may be stored: steps of method `size`, plain types and groups, 16 bits, as it is.

Vectors (biases, norms) are none of these layers: they stay byte for byte. In 16 bits the 48 of MiniLM's 63 that fp16
holds to 10 bits of precision would take 40 KB less. By what 54 KB more are worth at 8.5 MB, .0002 of embedding cosine,
that is .00016, and a layer's name is all that tells them from rotary tables, which fp16 ruins.

Scales of 5 significant bits instead of 8 would take 25 KB less; what that costs was not tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arrowquant_dist.config import QuantSpec, half_spec
from arrowquant_dist.plan import RowBlock

RATE = 0.1155  # squares of a step that a bit is worth: 2 ln 2 / 12, the slope of error by rate at fine steps
_MIDDLE_ROW = 8000.0  # of a vocabulary, by logarithm
_DIGITS = 5
_GROUPS = (128, 64, 32)
_FINE_GROUPS = (0, *_GROUPS, 16, 8)  # of int8; 0: one scale a row


@dataclass(frozen=True, slots=True)
class RowSteps:
    """Steps of an embedding. relative_step: that of the row in the middle of a vocabulary, to that of other layers.
    exponent: of the row's number, by which they grow."""

    relative_step: float
    exponent: float


# Of MiniLM, by embedding cosine at 5.3 to 10.9 MB of entropy: 1 costs .16 at 5.3 MB, 2 and 3.4 at most .015.
DATA_FREE = RowSteps(2.4, 0.15)
# What gptq's target makes up for costs other layers less, so bytes are worth more here. Of MiniLM, with 400 texts and
# rows ranked by their ids, a relative step of 2.4 costs .009 of embedding cosine at 5.5 MB, 1.2 costs .010, 1.6
# nothing; at 8.5 MB 2.4 is as good, and 1.4 costs .002. A rate of .2 costs .005 at 5.5 MB. Ranks by counts
# (methods/counted.py) leave an embedding a quarter less error at as many bytes, so that others are worth more of
# these; by ids an exponent of .2 costs .005 at 5.5 MB, by counts it gains .0002 at 8.5 MB.
ON_TARGET = RowSteps(2.0, 0.2)
# Of an embedding that the output head is too: a matrix that every token meets. Of SmolLM2-135M, by int4's bytes, it
# leaves .25 of excess of perplexity where DATA_FREE leaves .43.
HEAD_TOO = RowSteps(1.0, 0.0)


def size_spec(block: RowBlock, quant_type: str, step: float, rows: RowSteps | None) -> QuantSpec:
    """Method `size` at `step`, which is that of layers other than embeddings. block: of the layer. rows: of an
    embedding."""
    exponent = 0.0
    if rows is not None:
        exponent, step = rows.exponent, step * rows.relative_step / _MIDDLE_ROW**rows.exponent
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


def row_weight(row: float, rows: RowSteps | None) -> float:
    """What a relative squared error of a value of the row counts beside that of other layers: steps are in proportion
    to its inverse root. rows: of an embedding."""
    if rows is None:
        return 1.0
    return float((max(row, 1.0) / _MIDDLE_ROW) ** (-2.0 * rows.exponent) / rows.relative_step**2)


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
