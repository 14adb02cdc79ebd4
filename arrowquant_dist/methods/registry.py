"""All methods in one place: to add one, write a file next to this one and add a line here and in method_names."""

from __future__ import annotations

from collections.abc import Iterable

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.methods.counted import Counted
from arrowquant_dist.methods.gptq import ErrorCompensated, ErrorCompensatedPerTensor
from arrowquant_dist.methods.method import Method, SideInput, Span, TensorMethod
from arrowquant_dist.methods.mse import Mse
from arrowquant_dist.methods.per_tensor import PerTensor
from arrowquant_dist.methods.rtn import Rtn
from arrowquant_dist.methods.short_scales import ShortScales
from arrowquant_dist.methods.size import Size

_ROUNDED: Iterable[Method] = (Rtn(), Mse())  # their codes are those of the nearest level
_BY_GROUP: Iterable[Method] = (*_ROUNDED, ErrorCompensated(), Size(), Counted())
_PER_TENSOR: Iterable[TensorMethod] = (PerTensor("rtn"), PerTensor("mse"), ErrorCompensatedPerTensor())

BY_GROUP = {method.name: method for method in _BY_GROUP}  # one scale per row or group
PER_TENSOR = {method.name: method for method in _PER_TENSOR}


def method_of(spec: QuantSpec, layer: str | None = None) -> Method:
    """The method that quantizes layers of `spec`, which is_quantized. Raises InvalidConfig if the method that the spec
    names has no scales of this kind.

    layer: name of the layer, for the error.
    """
    method = BY_GROUP.get(spec.method) if spec.quant_axis == 0 else PER_TENSOR.get(spec.method)
    if method is None:
        scales = "scales by row or group" if spec.quant_axis == 0 else "scale for a whole tensor"
        message = f"method: {spec.method} has no {scales}; choose another method or group_size"
        raise InvalidConfig(message, layer=layer)
    if spec.scale_dtype != "float32" and spec.quant_axis == 0 and method in _ROUNDED:
        return ShortScales(method)
    return method


def span_of(spec: QuantSpec) -> Span:
    """An empty span, to which all row blocks of a layer are added before the first is quantized. spec: one with a
    single scale for the tensor."""
    return PER_TENSOR[spec.method].span(spec)


def side_input_of(name: str) -> SideInput | None:
    """What the method of this name needs besides the values; None if nothing."""
    own = [methods[name].side_input for methods in (BY_GROUP, PER_TENSOR) if name in methods]
    return next((side for side in own if side is not None), None)
