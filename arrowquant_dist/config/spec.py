"""How one layer is stored, with nothing left to resolve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from arrowquant_dist.config.choices import QuantType, ScaleDtypeName
from arrowquant_dist.dtypes import DTYPES

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
QUANT_TYPES = get_args(QuantType)
STORED_SCALES = get_args(ScaleDtypeName)
UNTOUCHED = "none"  # stored byte for byte
_FP16_NBYTES = 2
SOURCE = "source"  # the method of layers whose codes and scales are the source's own
TRAINED = "distilled"  # the method of layers whose codes and scales, or kept values, come with the plan


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one layer is stored: resolved from the config, all fields final.

    quant_type: `int8` `int4` `int3` `int2`; for a kept layer `none` (its bytes as they are) or `fp16`.
    per_channel: whether each row has one scale.
    group_size: number of values in a group; 0 with per_channel False: one scale for the tensor; ignored with
        per_channel True.
    method: a name of METHODS, `none` for a kept layer, SOURCE where the source's codes are kept as they are, TRAINED
        where what is stored was found before and is only measured here.
    row_dims: number of leading dimensions that make up the rows.
    keep_non_finite: store a layer that holds NaN or inf as `none` instead of failing.
    scale_dtype: one of STORED_SCALES, or float16 in exports: the dtype that the scales were rounded to. They are stored
        as float32 all the same.
    step, row_exponent, rate: numbers of methods `size` and `counted`; `gptq` has step and rate too (methods/coded.py).
        0 elsewhere. The codes of row i count steps of step · rms(row) · (i + 1)^row_exponent; rate is the price of a
        bit, in squares of a step (methods/size.py).
    """

    quant_type: str
    per_channel: bool = True
    group_size: int = 128
    symmetric: bool = True
    method: str = "rtn"
    integer_zero_points: bool = False
    row_dims: int = 1
    keep_non_finite: bool = False
    scale_dtype: str = "float32"
    step: float = 0.0
    row_exponent: float = 0.0
    rate: float = 0.0

    @property
    def is_quantized(self) -> bool:
        return self.quant_type in BITS

    @property
    def keeps_codes(self) -> bool:
        """Whether codes, scales and zero points are the source's own, so that nothing is quantized here."""
        return self.method == SOURCE

    @property
    def is_trained(self) -> bool:
        """Whether the stored codes or values come with the plan."""
        return self.method == TRAINED

    @property
    def chooses_codes(self) -> bool:
        """Whether a method has to find codes and scales for the values."""
        return self.is_quantized and not self.keeps_codes and not self.is_trained

    @property
    def bits(self) -> int:
        return BITS[self.quant_type]

    @property
    def quant_axis(self) -> int:
        """The V2 column: -1 for one scale per tensor, 0 for scales per channel or per group."""
        return 0 if self.is_quantized and (self.per_channel or self.group_size > 0) else -1

    @property
    def stored_group_size(self) -> int:
        """The V2 column: number of values in a group, 0 for scales per tensor and per channel."""
        return self.group_size if self.is_quantized and not self.per_channel else 0

    def groups_per_row(self, columns: int) -> int:
        """Number of scales of a row of `columns` values (per tensor: 0, since its one scale belongs to no row)."""
        if self.per_channel:
            return 1
        return -(-columns // self.group_size) if self.group_size else 0

    def to_dict(self) -> dict[str, Any]:
        """All fields, but those that earlier releases did not have only where they differ from what these did."""
        values = asdict(self)
        return {k: v for k, v in values.items() if k not in LATER_FIELDS or v != LATER_FIELDS[k]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantSpec:
        return cls(**values)


# Fields that earlier releases did not have, each with the value that stands for what they did.
LATER_FIELDS: Mapping[str, Any] = {
    field.name: field.default
    for field in fields(QuantSpec)
    if field.name in {"scale_dtype", "step", "row_exponent", "rate"}
}


@dataclass(frozen=True, slots=True)
class NotKept:
    """Stands in for the spec of a source's codes that V2 cannot hold exactly. reason: why, as a clause about them."""

    reason: str


def kept_spec(row_dims: int = 1) -> QuantSpec:
    """The spec of a layer that is stored byte for byte: `none`."""
    return QuantSpec(UNTOUCHED, per_channel=False, group_size=0, method="none", row_dims=row_dims)


def half_spec(dtype: str, row_dims: int = 1) -> QuantSpec:
    """The spec of a layer that is asked for in 16 bits: `fp16` where the source's `dtype` is a wider float, else
    `none`.

    Values beyond fp16's range are only found when they are read; the worker then stores the block as `none`.
    """
    source = DTYPES[dtype]
    is_wider = source.is_float and source.itemsize > _FP16_NBYTES
    return replace(kept_spec(row_dims), quant_type="fp16" if is_wider else UNTOUCHED)
