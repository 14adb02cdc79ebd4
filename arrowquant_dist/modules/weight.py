"""A weight matrix whose values stay codes in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch

from arrowquant_dist.config import BITS
from arrowquant_dist.config.checks import check_whole, shown
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules import operations
from arrowquant_dist.modules.packed_rows import PackedRows
from arrowquant_dist.tensor import QuantizedTensor

_BUFFERS = ("codes", "scales", "zero_points")
_OWN = frozenset({"shape", "dtype"})  # attributes that tensors have and that each weight sets itself
_MOST = (1 << 63) - 1


class QuantWeight(torch.nn.Module):
    """A matrix [rows, columns] as V2 stores it, in the place of a weight. Tied modules share one.

    rows, columns: shape of the matrix. bits: bits per code. group_size: number of values of a row that share a scale; 0
    for all of them. symmetric: without zero points. dtype: dtype of the decoded values, in which the model computes;
    `.to(dtype)` changes only this. device: device of the buffers.

    A value is (code - zero point) · scale. Buffers, none of which has a gradient: codes uint8 [rows, bytes per row];
    scales float32 [rows, groups]; zero_points float32 [rows, groups], or [rows, 0] if symmetric; form int64 [3]:
    columns, bits and group_size, which the shapes of the others do not determine. A state dict with another form is
    refused.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    form: torch.Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        bits: int,
        group_size: int = 0,
        *,
        symmetric: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if bits not in BITS.values():
            raise InvalidConfig(f"bits is {bits}; choose one of {', '.join(map(str, sorted(BITS.values())))}")
        check_whole("rows", rows, 0, _MOST)
        check_whole("columns", columns, 0, _MOST)
        check_whole("group_size", group_size, 0, _MOST)
        _check_dtype(dtype)
        self.shape = torch.Size((rows, columns))
        self.bits = bits
        self.group_size = group_size or max(columns, 1)
        self.dtype = dtype
        groups = -(-columns // self.group_size)
        nbytes = -(-columns * bits // 8)
        self.register_buffer("codes", torch.zeros(rows, nbytes, dtype=torch.uint8, device=device))
        wide = torch.float32  # regardless of torch's default dtype
        self.register_buffer("scales", torch.zeros(rows, groups, dtype=wide, device=device))
        points = 0 if symmetric else groups
        self.register_buffer("zero_points", torch.zeros(rows, points, dtype=wide, device=device))
        self.register_buffer("form", torch.tensor([columns, bits, self.group_size], device="cpu"))

    @classmethod
    def of(cls, tensor: QuantizedTensor, dtype: torch.dtype | None = None) -> Self:
        """Makes a weight from a QuantizedTensor.

        tensor: as given by `quantize_tensor` or a loader; its memory is taken over. dtype: dtype of the decoded values,
        instead of the source's. Raises InvalidConfig if it is not a matrix of codes.
        """
        if not isinstance(tensor, QuantizedTensor):
            message = f"codes have to be a QuantizedTensor, not {shown(tensor)}; quantize_tensor makes one"
            raise InvalidConfig(message)
        if not is_packable(tensor.quant_type, tensor.shape, tensor.row_dims):
            message = f"only a matrix of codes can stay codes, not {tensor.quant_type} of shape {list(tensor.shape)}"
            raise InvalidConfig(f"{message}; decode it")
        rows, columns = tensor.shape
        weight = cls(
            rows,
            columns,
            BITS[tensor.quant_type],
            tensor.group_size,
            symmetric=not tensor.zero_points.size,
            dtype=getattr(torch, tensor.dtype) if dtype is None else dtype,
            device="meta",
        )
        repeats = rows if tensor.quant_axis < 0 else 1  # one scale for the whole tensor becomes one per row
        found = (tensor.codes, np.repeat(tensor.scales, repeats), np.repeat(tensor.zero_points, repeats))
        for name, array in zip(_BUFFERS, found, strict=True):
            setattr(weight, name, _tensor(array, getattr(weight, name).shape))
        return weight

    @classmethod
    def joined(cls, parts: Sequence[tuple[QuantWeight, range]]) -> QuantWeight:
        """Stacks rows of several matrices. parts: pairs of a weight and a range of its rows, all with the same bits,
        columns and group size, from top to bottom. A single matrix that is taken whole is returned as it is."""
        first, rows = parts[0]
        if len(parts) == 1 and rows == range(first.shape[0]):
            return first
        has_zeros = any(weight.zero_points.shape[1] for weight, _ in parts)
        count = sum(len(rows) for _, rows in parts)
        whole = cls(
            count,
            first.shape[1],
            first.bits,
            first.group_size,
            symmetric=not has_zeros,
            dtype=first.dtype,
            device=first.device,
        )
        done = 0
        for weight, rows in parts:
            place = slice(done, done + len(rows))
            for name in _BUFFERS:
                numbers = getattr(weight, name)[rows.start : rows.stop]
                if numbers.shape[1]:  # otherwise symmetric beside others: zero points stay 0
                    getattr(whole, name)[place] = numbers
            done += len(rows)
        return whole

    @property
    def device(self) -> torch.device:
        """The device of the codes."""
        return self._own("codes").device

    @property
    def packed(self) -> PackedRows:
        """The buffers, in the form that products take."""
        codes, scales, zero_points = self._own("codes"), self._own("scales"), self._own("zero_points")
        return PackedRows(codes, scales, zero_points, self.bits, self.group_size, self.shape[1])

    def _own(self, name: str) -> torch.Tensor:
        """Returns a buffer a microsecond faster than attribute access in torch: a product asks for five."""
        return cast("torch.Tensor", self._buffers[name])

    @property
    def requires_grad(self) -> bool:
        """Always False: codes are whole numbers."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Raises InvalidConfig if requires_grad is True."""
        if requires_grad:
            message = (
                "a weight whose values are codes has no gradient; train the layers around it, or load the model "
                "without codes=True"
            )
            raise InvalidConfig(message)
        return self

    @property
    def ndim(self) -> int:
        """The number of dimensions: always 2."""
        return 2

    def dim(self) -> int:
        """Returns the number of dimensions, as for a tensor: always 2."""
        return 2

    def size(self, dim: int | None = None) -> Any:
        """Returns the shape as a tensor does, or one entry of it. dim: which entry."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Returns the number of decoded values."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Returns True, as for a tensor: the decoded values are floating-point numbers."""
        return True

    @property
    def nbytes(self) -> int:
        """The size in bytes of codes, scales and zero points."""
        return sum(getattr(self, name).nbytes for name in _BUFFERS)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Returns the values [rows, columns] as a new tensor. dtype: its dtype, by default the weight's."""
        values: torch.Tensor = operations.decode(
            self.codes,
            self.scales,
            self.zero_points,
            self.bits,
            self.group_size,
            self.shape[1],
            dtype or self.dtype,
        )
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001
        """Returns the values as numpy gets those of a tensor, in new memory."""
        return np.asarray(self.dequantize().numpy(), dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises InvalidConfig for attributes that only tensors have: `weight.data = …`, say, would have no effect."""
        is_known = name in _OWN or name.startswith("_") or hasattr(type(self), name)
        if not is_known and hasattr(torch.Tensor, name):
            message = (
                f"a weight whose values are codes has no attribute {name!r} to set; replace it by another QuantWeight, "
                "or load the model without codes=True"
            )
            raise InvalidConfig(message)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Raises an AttributeError that says what to do for attributes that only tensors have."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if not hasattr(torch.Tensor, name):
                raise
            message = (
                f"a weight whose values are codes has no attribute {name!r}; "
                "dequantize() returns a tensor that has it"
            )
            raise AttributeError(message, name=name, obj=self) from error

    def extra_repr(self) -> str:
        symmetric = not self.zero_points.shape[1]
        return f"{list(self.shape)}, bits={self.bits}, group_size={self.group_size}, symmetric={symmetric}"

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,  # noqa: FBT001
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes codes only together with all that determines their meaning, and refuses buffers that were cast."""
        names = [name for name in self._buffers if f"{prefix}{name}" in state_dict]
        misfit = self._misfit({name: state_dict[f"{prefix}{name}"] for name in names})
        if misfit:
            error_msgs.append(f"{prefix}{misfit}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _misfit(self, found: Mapping[str, Any]) -> str:
        """Returns what is wrong with the buffers in a state dict; empty if nothing is, or if there are none."""
        if not found:
            return ""
        own, form = [self.shape[1], self.bits, self.group_size], found.get("form")
        if form is None or form.tolist() != own:
            has = "unknown" if form is None else form.tolist()
            return f"codes have another form: columns, bits and group_size are {has}, not {own}"
        missing = [name for name in self._buffers if name not in found]
        if missing:
            return f"codes cannot be loaded without their {' and '.join(missing)}; load a state dict that has all"
        for name, value in found.items():
            dtype = getattr(self, name).dtype
            if value.dtype != dtype:
                return f"{name} are {value.dtype}, not {dtype}; casting may have changed the numbers"
        return ""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:  # noqa: ARG002, FBT001, FBT002
        """Moves the buffers but casts none of them: a scale in fewer bits would be a different scale."""
        probe = torch.empty(0, dtype=self.dtype, device=self.device)
        dtype = fn(probe).dtype
        _check_dtype(dtype)
        self.dtype = dtype
        for name in _BUFFERS:
            old = getattr(self, name)
            new = fn(old)
            setattr(self, name, new if new.dtype == old.dtype else old.to(new.device))
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Decodes a weight that is passed to a function of torch, as in `F.linear(x, module.weight)`.

        Raises InvalidConfig for functions that modify it, such as those of torch.nn.init: they would modify a copy.
        """
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            message = (
                f"{name} would change a weight whose values are codes; change the values that dequantize() returns, "
                "or load the model without codes=True"
            )
            raise InvalidConfig(message)
        given = {name: _decoded(value) for name, value in (kwargs or {}).items()}
        return func(*(_decoded(value) for value in args), **given)


def is_packable(quant_type: str, shape: tuple[int, ...], row_dims: int) -> bool:
    """Returns whether a layer is a matrix of codes."""
    return quant_type in BITS and len(shape) == 2 and row_dims == 1


class CodesLayer(torch.nn.Module):
    """A layer with a QuantWeight. Raises InvalidConfig if its weight is set to anything else, or to one of another
    shape."""

    weight: QuantWeight

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            _check_weight(value, self._modules.get("weight"))
        super().__setattr__(name, value)


def _check_weight(weight: object, old: object) -> None:
    if not isinstance(weight, QuantWeight):
        message = f"weight has to be a QuantWeight, not {shown(weight)}; QuantWeight.of makes one from quantized values"
        raise InvalidConfig(message)
    if isinstance(old, QuantWeight) and weight.shape != old.shape:
        shapes = f"weight has shape {list(weight.shape)}, and this layer's has {list(old.shape)}"
        message = f"{shapes}; make a new layer for it"
        raise InvalidConfig(message)


def _check_dtype(dtype: object) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise InvalidConfig(
            f"dtype has to be a floating-point dtype of 16 bits or more, such as torch.bfloat16, not {shown(dtype)}"
        )


def _tensor(array: np.ndarray, shape: torch.Size) -> torch.Tensor:
    """Returns a tensor over the array's own memory, unless that is read-only or part of a larger array."""
    owner = array if array.base is None else array.base
    is_own = array.flags.writeable and getattr(owner, "nbytes", 0) == array.nbytes
    return torch.from_numpy(array if is_own else array.copy()).reshape(shape)


def _decoded(value: Any) -> Any:
    return value.dequantize() if isinstance(value, QuantWeight) else value
