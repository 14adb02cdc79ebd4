"""How scales and codes are chosen: spec + values → scales, zero points, codes, error sums. A file each.

Methods see arrays and a QuantSpec, so they lie between the kernels that they call and tensor/, which turns a dtype's
bytes into such arrays and what a method found into a QuantizedTensor: whoever has one to decode needs no method. What
a method needs besides the values it declares (SideInput); the plan finds it, the worker reads it.
"""

from arrowquant_dist.methods.counted import COUNTS
from arrowquant_dist.methods.method import (
    NOTHING,
    Found,
    Given,
    Method,
    PartReader,
    SideInput,
    Span,
    TensorMethod,
    TensorScale,
)
from arrowquant_dist.methods.registry import method_of, side_input_of, span_of
from arrowquant_dist.methods.short_scales import are_halves
from arrowquant_dist.methods.statistics import HESSIAN, SENSITIVITY, STATISTICS_VERSION

__all__ = [
    "COUNTS",
    "HESSIAN",
    "NOTHING",
    "SENSITIVITY",
    "STATISTICS_VERSION",
    "Found",
    "Given",
    "Method",
    "PartReader",
    "SideInput",
    "Span",
    "TensorMethod",
    "TensorScale",
    "are_halves",
    "method_of",
    "side_input_of",
    "span_of",
]
