"""Turns weights that callers pass, torch tensors or numpy arrays, into the bytes that the package works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_dist.config.checks import shown
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig, listed

if TYPE_CHECKING:
    import torch

_WEIGHT = "a weight must be a torch tensor or a numpy array"


def check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise InvalidConfig(
            f"name must be a string (the layer's name), not {shown(name)}; omit it if the weight has none"
        )


def given_bytes(weight: Any) -> tuple[np.ndarray, tuple[int, ...], str]:
    """(uint8 [nbytes], shape, dtype name) of a torch tensor or numpy array, little-endian, in C order.

    Values that already have this layout in main memory are not copied. Negated views, other byte orders, strides and
    gradients are resolved. Raises InvalidConfig, saying what to pass instead, for a weight without values of its own.
    """
    if isinstance(weight, np.ndarray):
        return _of_array(weight)
    import torch

    if not isinstance(weight, torch.Tensor):
        raise InvalidConfig(f"{_WEIGHT}, not {_kind_of(weight)}; {_hint(weight)}")
    problem = _tensor_problem(weight)
    if problem is not None:
        raise InvalidConfig(f"this weight {problem}")
    dtype = _known(str(weight.dtype).removeprefix("torch."))
    try:
        plain = weight.detach().as_subclass(torch.Tensor).cpu().resolve_conj().resolve_neg().contiguous()
        return plain.reshape(-1).view(torch.uint8).numpy(), tuple(map(int, weight.shape)), dtype
    except (RuntimeError, NotImplementedError, TypeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"this weight's values cannot be read ({reason}); pass a plain tensor on the CPU"
        raise InvalidConfig(message) from error


def _of_array(weight: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], str]:
    if isinstance(weight, np.ma.MaskedArray):
        raise InvalidConfig("this weight is a masked array; pass its values, such as weight.filled(0)")
    dtype = _known(weight.dtype.name)
    plain = np.ascontiguousarray(np.asarray(weight), weight.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8), weight.shape, dtype


def _tensor_problem(weight: torch.Tensor) -> str | None:
    """Why a tensor cannot be read and what to pass instead; None if it can be read."""
    import torch

    if torch.nn.parameter.is_lazy(weight):
        return "is not initialized yet; run its module once first"
    if weight.is_nested:
        return "is a nested tensor; pass its tensors one at a time (weight.unbind())"
    if weight.is_meta:
        return "is on the meta device and has no values; load them first"
    if type(weight).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        kind = type(weight).__name__
        return (
            f"is a {kind}, a wrapper around another tensor; pass a plain tensor, such as its full, local or "
            "dequantized form"
        )
    if weight.layout != torch.strided:
        return f"has the layout {str(weight.layout).removeprefix('torch.')}; pass weight.to_dense()"
    if weight.is_quantized:
        return "is already quantized; pass weight.dequantize()"
    if weight.numel() and weight.data_ptr() == 0:
        return "has no values, because its memory was freed; pass it before that"
    return None


def _known(dtype: str) -> str:
    if dtype not in DTYPES:
        known = listed(name for name in DTYPES if DTYPES[name].is_float)
        raise InvalidConfig(f"dtype {dtype} is not supported; convert the weight to one of {known}")
    return dtype


def _kind_of(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _hint(value: Any) -> str:
    if isinstance(value, (list, tuple, np.generic, int, float)):
        return "pass numpy.asarray(…)"
    return "convert its values to one of these"
