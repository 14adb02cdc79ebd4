"""The ways in which a layer may be stored: in steps of method `size`, in plain types with groups, in 16 bits, as it is.

Vectors (biases, norms) are not among these layers: they stay byte for byte. In 16 bits, the 48 of MiniLM's 63 vectors
that fp16 holds to 10 bits of precision would take 40 KB less. At 8.5 MB, 54 KB more are worth .0002 of embedding
cosine, so these are worth .00016; and only a layer's name tells such vectors from rotary tables, which fp16 ruins.

Scales of 5 significant bits instead of 8 would take 25 KB less; what that costs was not tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arrowquant_dist.config import QuantSpec, half_spec
from arrowquant_dist.plan import RowBlock

RATE = 0.1155  # price of a bit in squares of a step: 2 ln 2 / 12, the slope of error by rate at fine steps
_MIDDLE_ROW = 8000.0  # row in the middle of a vocabulary, on a logarithmic scale
_DIGITS = 5
_GROUPS = (128, 64, 32)
_FINE_GROUPS = (0, *_GROUPS, 16, 8)  # for int8; 0: one scale a row


@dataclass(frozen=True, slots=True)
class RowSteps:
    """Steps of an embedding's rows. relative_step: step of the row in the middle of a vocabulary, relative to that of
    other layers. exponent: power of the row's number with which steps grow."""

    relative_step: float
    exponent: float


# Found for MiniLM by embedding cosine at 5.3 to 10.9 MB of entropy: a relative step of 1 costs .16 at 5.3 MB, 2 and 3.4
# cost at most .015.
DATA_FREE = RowSteps(2.4, 0.15)
# Errors that gptq's target makes up for cost other layers less, so bytes are worth more in embeddings. For MiniLM, with
# 400 texts and rows ranked by their ids, a relative step of 2.4 costs .009 of embedding cosine at 5.5 MB, 1.2 costs
# .010, 1.6 nothing; at 8.5 MB 2.4 is as good, and 1.4 costs .002. A rate of .2 costs .005 at 5.5 MB. With ranks by
# counts (methods/counted.py) an embedding has a quarter less error at as many bytes, so more of these are worth giving
# to other layers: an exponent of .2 costs .005 at 5.5 MB by ids, and gains .0002 at 8.5 MB by counts.
ON_TARGET = RowSteps(2.0, 0.2)
# For an embedding that is the output head as well, a matrix that every token is multiplied with. At int4's bytes
# SmolLM2-135M has .25 of excess of perplexity with it, and .43 with DATA_FREE.
HEAD_TOO = RowSteps(1.0, 0.0)


def size_spec(block: RowBlock, quant_type: str, step: float, rows: RowSteps | None) -> QuantSpec:
    """Spec of method `size`. block: a block of the layer. step: step of layers other than embeddings. rows: steps of an
    embedding; None for other layers."""
    exponent = 0.0
    if rows is not None:
        exponent, step = rows.exponent, step * rows.relative_step / _MIDDLE_ROW**rows.exponent
    rounded = float(f"{step:.{_DIGITS}g}")  # as a config has it
    spec = _plain(block, quant_type, 0, symmetric=True)
    return replace(spec, method="size", step=rounded, row_exponent=exponent, rate=RATE)


def grouped_specs(block: RowBlock) -> dict[str, tuple[list[QuantSpec], list[QuantSpec]]]:
    """{type below int8: (specs with its largest and smallest groups, all others)}, as in a config without a size."""
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
    """Specs of int8 and 16 bits."""
    return [
        *(replace(_plain(block, "int8", group, symmetric=True), method="rtn") for group in _FINE_GROUPS),
        half_spec(block.layer.dtype, block.spec.row_dims),
    ]


def row_weight(row: float, rows: RowSteps | None) -> float:
    """Weight of a relative squared error of a value in the row, where other layers have 1; steps are in proportion to
    the inverse of its root. rows: steps of an embedding; None for other layers."""
    if rows is None:
        return 1.0
    return float((max(row, 1.0) / _MIDDLE_ROW) ** (-2.0 * rows.exponent) / rows.relative_step**2)


def _plain(block: RowBlock, quant_type: str, group_size: int, *, symmetric: bool) -> QuantSpec:
    """A spec of method `mse`. group_size: 0 for one scale a row."""
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
