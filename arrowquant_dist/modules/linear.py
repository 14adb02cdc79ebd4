"""A linear layer whose weight stays codes in memory."""

from __future__ import annotations

from typing import get_args

import torch

from arrowquant_dist.config import Activations
from arrowquant_dist.config.checks import shown
from arrowquant_dist.errors import InvalidConfig, counted
from arrowquant_dist.modules import operations
from arrowquant_dist.modules.products import multiply
from arrowquant_dist.modules.transforms import is_traced, is_transformed, plain_linear
from arrowquant_dist.modules.weight import CodesLayer, QuantWeight

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


def check_activations(activations: Activations | None) -> None:
    """Raises InvalidConfig unless `activations` is None or one of the choices."""
    choices = get_args(Activations)
    if activations is not None and not (isinstance(activations, str) and activations in choices):
        possible = " or ".join(map(repr, (None, *choices)))
        raise InvalidConfig(f"activations is {shown(activations)}; choose {possible}")


def _check_bias(bias: object, rows: int) -> None:
    if bias is None:
        return
    if not isinstance(bias, torch.Tensor) or not bias.is_floating_point() or bias.shape != (rows,):
        kind = f"{bias.dtype} {list(bias.shape)}" if isinstance(bias, torch.Tensor) else shown(bias)
        raise InvalidConfig(
            f"the bias for {counted(rows, 'output')} has to be a floating-point tensor of shape [{rows}], not {kind}"
        )


class QuantLinear(CodesLayer):
    """`torch.nn.Linear` with a QuantWeight: values [..., in_features] → [..., out_features].

    Products are summed in float32 (float64 for float64 inputs) over the values that the codes stand for, and rounded
    once to the dtype of the inputs. With few inputs the codes are read in a single pass. With many bfloat16 or float16
    inputs, where the machine multiplies these natively, the values and the bias are first rounded to that dtype, as
    they are in a layer that was loaded decoded. Gradients reach the inputs and the bias.

    weight: [out_features, in_features]. bias: values [out_features], or None. activations: None, or "int8".

    Inputs are not quantized unless activations="int8" asks for it. Then each input x [in_features] gets its own scale,
    t = max|x| / 127, and becomes whole numbers a = round(x / t), ties to even. Their products with the codes q are
    summed as int32: y = t · Σ_groups scale · (Σ a·q - zero point · Σ a) + bias. There are no gradients in that case.
    """

    bias: torch.nn.Parameter | None

    def __init__(
        self, weight: QuantWeight, bias: torch.Tensor | None = None, activations: Activations | None = None
    ) -> None:
        super().__init__()
        check_activations(activations)
        self.weight = weight
        _check_bias(bias, weight.shape[0])
        self.activations = activations
        self.out_features, self.in_features = weight.shape
        if bias is not None and not isinstance(bias, torch.nn.Parameter):
            bias = torch.nn.Parameter(bias)
        self.register_parameter("bias", bias)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the products [..., out_features] of `values`, floating-point numbers [..., in_features]."""
        weight, bias = self.weight, self.bias
        self._check(values, weight, bias)
        kind = values.device.type
        can_cast = torch.amp.is_autocast_available(kind) and values.dtype != torch.float64
        if can_cast and torch.is_autocast_enabled(kind):
            values = values.to(torch.get_autocast_dtype(kind))
        traced = is_traced(values)
        if not traced and (is_transformed(values) or is_transformed(bias)):
            self._refuse_whole_numbers()
            return plain_linear(values, weight.packed, bias)
        # called as an operation of torch it would take some 20 µs longer
        if self.activations is None and not traced and not _needs_gradient(values, bias):
            return multiply(values, weight.packed, bias)
        operation = operations.linear if self.activations is None else operations.whole_linear
        packed = (weight.codes, weight.scales, weight.zero_points)
        product: torch.Tensor = operation(values, *packed, bias, weight.bits, weight.group_size)
        return product

    def _check(self, values: torch.Tensor, weight: QuantWeight, bias: torch.Tensor | None) -> None:
        is_taken = values.dtype in _DTYPES and values.layout is torch.strided
        if not is_taken or not values.ndim or values.shape[-1] != self.in_features:
            layout = "" if values.layout is torch.strided else f" ({values.layout})"
            message = (
                f"a layer of {counted(self.in_features, 'feature')} takes floating-point values [..., "
                f"{self.in_features}] of 16, 32 or 64 bits, not {values.dtype} {list(values.shape)}{layout}; "
                "pass the output of the layer before it"
            )
            raise InvalidConfig(message)
        codes_on = weight.device
        for other in (codes_on, codes_on if bias is None else bias.device):
            if other != values.device:  # with "meta" the result would be memory that nothing was written to
                where = f"a layer's inputs are on {values.device}, but the layer is on {other}"
                raise InvalidConfig(f"{where}; move one of them with .to(device)")

    def _refuse_whole_numbers(self) -> None:
        if self.activations is not None:
            message = "quantized activations have no derivative and do not work with torch.func; leave out activations"
            raise InvalidConfig(message)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activations={self.activations}"
        )


def _needs_gradient(values: torch.Tensor, bias: torch.Tensor | None) -> bool:
    needed = values.requires_grad or (bias is not None and bias.requires_grad)
    return needed and torch.is_grad_enabled()
