"""Counts how much of a model's parameters is filled while it loads.

vLLM puts q, k and v into one parameter, gate and up into another, and all experts into two. Its models report which
parameters they have filled, but a parameter counts as filled once anything was copied into it: with a checkpoint that
lacks k_proj, the place between q and v contains whatever was in memory before. So copied bytes are counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from arrowquant_dist.loader.memory import byte_range, has_memory, storage_of
from arrowquant_dist.plugins.vllm.lazy import LazyTensor

_FILLING = {"copy_", "fill_", "zero_"}
_OTHER_CHANGES = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "and", "or", "xor")}
_CHANGING_NO_VALUE = {"requires_grad_", "share_memory_"}
_LEAST_DIMS_OF_EXPERTS = 3  # from here on, each index of the first dimension has pieces of its own


@dataclass(slots=True)
class _Pieces:
    """What was copied into one parameter. nbytes: {(addresses, shape and strides): bytes}, so that a piece copied twice
    counts once. layers: the dataset's layers that were copied. is_counted: whether only copies have changed it."""

    nbytes: dict[tuple[tuple[int, int], object], int] = field(default_factory=dict)
    layers: dict[str, None] = field(default_factory=dict)
    is_counted: bool = True


class FillCount(TorchFunctionMode):
    """Records, while it is entered, what is copied into parameters that have their memory to themselves."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._parameters = {name: tensor for name, tensor in parameters.items() if _is_whole(tensor)}
        self._pieces = {storage_of(tensor): _Pieces() for tensor in self._parameters.values()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        changed = args[0] if args else None
        if name in _FILLING:
            self._note(changed, [*args[1:2], *kwargs.values()])
        elif name == "__setitem__" and changed is not None:
            place = changed[args[1]]
            self._note(place, args[2:])
            if place.numel() and storage_of(place) != storage_of(changed):  # indexed by a mask or by numbers
                self._lose_count(changed)
        elif name in _OTHER_CHANGES or (name[-1:] == "_" != name[:1] and name not in _CHANGING_NO_VALUE):
            self._lose_count(changed)
        elif "out" in kwargs:
            self._lose_count(kwargs["out"])
        return result

    def partly(self) -> dict[str, list[str]]:
        """Returns {parameter: layers that it was filled from} for parameters that lack at least as much as one of their
        pieces. Models may pad their parameters by less than that."""
        found = {}
        for name, tensor in self._parameters.items():
            pieces = self._pieces.get(storage_of(tensor))
            if pieces is not None and pieces.is_counted and pieces.layers and _lacks_a_piece(tensor, pieces):
                found[name] = [*pieces.layers]
        return found

    def _note(self, place: Any, sources: Sequence[Any]) -> None:
        pieces = self._pieces_of(place)
        if pieces is not None and place.numel():
            key = (byte_range(place), (*place.shape, *place.stride()))
            pieces.nbytes[key] = place.numel() * place.element_size()
            pieces.layers.update((one.source.name, None) for one in sources if isinstance(one, LazyTensor))

    def _lose_count(self, changed: Any) -> None:
        pieces = self._pieces_of(changed)
        if pieces is not None:
            pieces.is_counted = False

    def _pieces_of(self, place: Any) -> _Pieces | None:
        if not isinstance(place, torch.Tensor) or isinstance(place, LazyTensor) or not has_memory(place):
            return None
        return self._pieces.get(storage_of(place))


def _lacks_a_piece(tensor: torch.Tensor, pieces: _Pieces) -> bool:
    count = tensor.shape[0] if tensor.dim() >= _LEAST_DIMS_OF_EXPERTS else 1
    each, smallest = tensor.nbytes // count, tensor.nbytes // count
    base, _ = byte_range(tensor)
    filled = [0] * count
    for ((start, stop), _), nbytes in pieces.nbytes.items():
        members = range((start - base) // each, -(-(stop - base) // each))
        smallest = min(smallest, nbytes // len(members))
        for member in members:
            filled[member] += nbytes // len(members)
    return any(each - nbytes >= max(smallest, 1) for nbytes in filled)


def _is_whole(tensor: torch.Tensor) -> bool:
    """Returns whether the tensor has a storage to itself and is contiguous."""
    is_whole = has_memory(tensor) and tensor.is_contiguous() and tensor.numel() > 0
    return is_whole and tensor.untyped_storage().nbytes() == tensor.nbytes
