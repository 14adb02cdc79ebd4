"""Tensors that are read when their values are used, and then only as far as they are still needed.

vLLM hands each weight of a checkpoint to the loader of its parameter, which takes this rank's part of it (`narrow`, by
rows, columns, heads or experts) and copies that into the parameter. A `LazyTensor` takes part in this like any tensor
while nothing is read: a tensor on torch's meta device goes through the same views, so that torch itself keeps track of
what each of them is, as a size, strides and an offset. An operation that needs values reads the part of the layer that
contains them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from arrowquant_dist.errors import ModelMismatch
from arrowquant_dist.plugins.vllm.torch_private import CAST, without_memory

_COPY, _COPY_INTO = "aten.clone.default", "aten.copy_.default"  # full names of operators in torch


class WeightSource(Protocol):
    """What a lazy tensor is read from.

    name: name of the layer, for errors. shape: [] for a scalar. dtype: dtype of the values. most_nbytes: bytes of
    values to request at a time, if a destination can be filled in several steps.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def most_nbytes(self) -> int: ...

    def read(self, box: Box) -> torch.Tensor:
        """Reads a part of it as a contiguous tensor [rows, columns, *rest], in new memory; with fewer dimensions if the
        source has fewer."""


class Box(NamedTuple):
    """A run of a tensor's first dimension and a run of its second. A tensor without a second dimension has one column;
    a scalar is one row of one column."""

    rows: range
    columns: range


class LazyTensor(torch.Tensor):
    """A view of `source`, which has `dtype` and is on `device` once it is read. It cannot be changed in place.

    Its views and copies, and casts and moves of these, are lazy as well. Any other function of torch gets the values,
    read again each time.
    """

    source: WeightSource
    _view: torch.Tensor
    _device: torch.device

    @classmethod
    def of(cls, source: WeightSource) -> LazyTensor:
        """Returns a tensor of all of the source's values, on the CPU."""
        whole = torch.empty(source.shape, dtype=source.dtype, device="meta")
        return _lazy(source, whole, torch.device("cpu"))

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device where its values will be, whatever the tensor itself is made of."""
        return self._device

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"LazyTensor({self.source.name!r}, {tuple(self.shape)}, {self.dtype})"

    def numpy(self, *, force: bool = False) -> Any:
        return self.read().numpy(force=force)

    def tolist(self) -> Any:
        return self.read().tolist()

    @property
    def box(self) -> Box:
        """The part of the source that has this view's values, of which there is at least one: whole rows if its columns
        cannot be told."""
        return self._box_and_view()[0]

    def read(self) -> torch.Tensor:
        """Returns the values, contiguous (a lazy copy may be of a view that is not), in new memory."""
        return self._values().contiguous()

    def _values(self) -> torch.Tensor:
        """Returns the values, with the strides of the view."""
        view = self._view
        if not view.numel():
            return torch.empty(view.shape, dtype=view.dtype, device=self._device)
        box, strides, offset = self._box_and_view()
        values = self.source.read(box).reshape(-1)
        return values.as_strided(view.shape, strides, offset).to(self._device, view.dtype)

    def _box_and_view(self) -> tuple[Box, list[int], int]:
        """Returns the part of the source, and the strides and offset of the view within it.

        In the source, [rows, columns, *rest] in C order, a step of a view goes along rows, along columns or within one.
        """
        columns, inner = _columns(self.source.shape)
        offset, row = int(self._view.storage_offset()), columns * inner
        steps = [
            (size - 1, stride) for size, stride in zip(self._view.shape, self._view.stride(), strict=True)
        ]
        along_rows = sum(count * (stride // row) for count, stride in steps if stride % row == 0)
        others = [(count, stride) for count, stride in steps if stride % row]
        along_columns = sum(count * (stride // inner) for count, stride in others if stride % inner == 0)
        within = sum(count * stride for count, stride in others if stride % inner)
        first, (column, rest) = offset // row, divmod(offset % row, inner)
        if column + along_columns >= columns or rest + within >= inner:  # the view continues into later rows
            last = offset + sum(count * stride for count, stride in steps)
            box = Box(range(first, last // row + 1), range(columns))
            return box, [*self._view.stride()], offset - first * row
        box = Box(range(first, first + along_rows + 1), range(column, column + along_columns + 1))
        narrow = len(box.columns) * inner
        strides = [stride // row * narrow if stride % row == 0 else stride for stride in self._view.stride()]
        return box, strides, rest

    def copy_to(self, destination: torch.Tensor) -> None:
        """Fills `destination`, in several steps if all of it would take too much memory at once."""
        steps = 1
        if self._view.numel() and destination.shape == self.shape:
            box, (_, inner) = self.box, _columns(self.source.shape)
            nbytes = len(box.rows) * len(box.columns) * inner * self.source.dtype.itemsize
            steps = -(-nbytes // max(self.source.most_nbytes, 1))
        if steps <= 1:
            destination.copy_(self._values())
            return
        dim = max(range(self._view.dim()), key=self._view.stride)  # the one that runs along the source's rows
        size = -(-self.shape[dim] // steps)
        for start in range(0, self.shape[dim], size):
            part = self.narrow(dim, start, min(size, self.shape[dim] - start))
            assert isinstance(part, LazyTensor)  # noqa: S101 - for the type checker: it is a view
            destination.narrow(dim, start, part.shape[dim]).copy_(part._values())

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        changed = first if str(func.overloadpacket).endswith("_") else kwargs.get("out")
        if isinstance(changed, LazyTensor):
            message = (
                f"the model's own loading changes this weight in place ({func}), which is impossible while it is read "
                "in parts; export the dataset (arrowquant export) and load what that writes"
            )
            raise ModelMismatch(message, layer=changed.source.name)
        if str(func) == _COPY_INTO and isinstance(args[1], LazyTensor):
            args[1].copy_to(args[0])
            return first
        if isinstance(first, LazyTensor):
            lazy = first._without_reading(func, args[1:], kwargs)
            if lazy is not None:
                return lazy
        return func(*_read(args), **{key: _read(value) for key, value in kwargs.items()})

    def _without_reading(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what needs no values, views and copies, again lazy. None for anything else."""
        if str(func) == _COPY:  # a copy is indistinguishable from the original, since neither can be changed
            return _lazy(self.source, self._view, self._device)
        if (
            str(func) == CAST
            and kwargs.get("layout") in {None, torch.strided}
            and not kwargs.get("pin_memory")
        ):
            return self._cast(kwargs.get("dtype"), kwargs.get("device"))
        if not func.is_view:
            return None
        try:
            result = func(self._view, *args, **kwargs)
        except (
            RuntimeError
        ):  # a copy in its own order may allow this view; with values, the operation works or raises
            return None
        results = [result] if isinstance(result, torch.Tensor) else result
        if any(view.dtype != self.dtype for view in results):
            return None
        views = [_lazy(self.source, view, self._device) for view in results]
        return views[0] if isinstance(result, torch.Tensor) else type(result)(views)

    def _cast(self, dtype: torch.dtype | None, device: torch.device | None) -> LazyTensor:
        view = self._view
        if dtype is not None:
            whole = torch.empty(math.prod(self.source.shape), dtype=dtype, device="meta")
            view = whole.as_strided(view.shape, view.stride(), view.storage_offset())
        return _lazy(self.source, view, self._device if device is None else torch.device(device))


def _columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns how many columns a box can have, and how many values there are in each of its places."""
    return shape[1] if len(shape) > 1 else 1, math.prod(shape[2:])


def _lazy(source: WeightSource, view: torch.Tensor, device: torch.device) -> LazyTensor:
    lazy = without_memory(LazyTensor, view, device)
    lazy.source, lazy._view, lazy._device = source, view, device
    return lazy


def _read(value: Any) -> Any:
    """Returns the argument with lazy tensors in it replaced by their values."""
    if isinstance(value, LazyTensor):
        return value.read()
    if isinstance(value, torch.Tensor) and value.is_meta:
        message = (
            "the model's own loading needs a helper tensor that has no values; use another version of torch"
        )
        raise ModelMismatch(message)
    if isinstance(value, list | tuple):
        return type(value)(_read(member) for member in value)
    return value
