"""How scales and codes are chosen: spec + values → scales, zero points, codes, error sums. One file per method.

Methods see only arrays and a QuantSpec. They lie between the kernels, which they call, and tensor/, which turns a
dtype's bytes into such arrays and a method's result into a QuantizedTensor; decoding a QuantizedTensor needs no method.
A method declares what it needs besides the values as a SideInput, which the plan looks up and the worker reads.
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
