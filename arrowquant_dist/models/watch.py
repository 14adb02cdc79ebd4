"""Watches the products of a model as it runs: every input that is multiplied with a weight, or looked up in one.

The modules need not be known: torch's own functions are watched, only in this thread, so that nn.Linear, Conv1D and the
experts that transformers keeps in one parameter are all recognized in the same way, by the memory of their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from arrowquant_dist.models.decisions import Decides
from arrowquant_dist.models.traced import replaced

Use = Literal["linear", "transposed", "embedding"]
_PRODUCTS = {"linear", "addmm", "embedding", "matmul", "__matmul__", "mm"}
_IN_PLACE = {"add_", "__iadd__", "mul_", "__imul__"}
_SAME = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
_SUMS = {"add", "__add__", "__radd__", "add_", "__iadd__"}
_LOOKS = {"__get__", "size", "dim"}  # look at properties of a tensor, some of which are views of it
_SUMMANDS = 4  # most products whose results may still become a summand: they stay in memory until then


class Enough(Exception):
    """Ends a forward pass when the rest of it is not needed. It never leaves models/."""


@dataclass(frozen=True, slots=True)
class Site:
    """A weight that inputs are multiplied with, or looked up in: a parameter, or one expert of it.

    slot: index of the parameter. start, nvalues: which of its values are the weight, in memory order. use: `linear` x
    Wᵀ, `transposed` x W, `embedding` for rows by number."""

    slot: int
    start: int
    nvalues: int
    use: Use

    @property
    def key(self) -> str:
        return f"{self.slot}.{self.start}.{self.nvalues}.{self.use}"

    @classmethod
    def from_key(cls, key: str) -> Site:
        slot, start, nvalues, use = key.split(".")
        return cls(int(slot), int(start), int(nvalues), use)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One product. site: its weight. given: [..., in], or row numbers. made: the result."""

    site: Site
    given: torch.Tensor
    made: torch.Tensor


class Watch(TorchFunctionMode):
    """Calls functions for what happens to a model's weights.

    memory: {address of a parameter's memory: its slot}. on_product: called after each product. on_sum: called before a
    sum of a product's unchanged result, in any shape, and a tensor that is not itself the result of a product; is given
    the product and that tensor. ends: slots whose product nobody needs: its input is reported, and Enough raised.
    decides: returns what replaces results. on_other: called with each slot that is used in anything else than such a
    product.
    """

    def __init__(
        self,
        memory: Mapping[int, int],
        on_product: Callable[[Seen], None],
        on_sum: Callable[[Seen, torch.Tensor], None] | None = None,
        ends: frozenset[int] = frozenset(),
        decides: Decides | None = None,
        on_other: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self._on_other = on_other
        self._ends, self._decides = ends, decides
        self._memory, self._on_product, self._on_sum = memory, on_product, on_sum
        self._made: list[Seen] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._on_sum is not None and name in _SUMS:
            other = self._other_summand(args)
            if other is not None:  # before the sum, which may be made in place
                self._on_sum(*other)
        found = self._weight_of(func, args, kwargs) if name in _PRODUCTS else None
        if found is None and self._on_other is not None and name not in _LOOKS:
            replaced((args, dict(kwargs)), torch.Tensor, self._note_other)
        if found is not None and found[0].slot in self._ends and found[0].use == "linear":
            self._on_product(Seen(found[0], found[1], found[1]))
            raise Enough
        result = func(*args, **kwargs)
        if self._decides is not None:
            result = self._decides(name, args, kwargs, result)
        if name in _IN_PLACE:  # the tensor is no longer just the product's result
            self._made = [seen for seen in self._made if seen.made is not args[0]]
        if self._on_sum is not None and name in _SAME and args:
            alike = [Seen(seen.site, seen.given, result) for seen in self._made if seen.made is args[0]]
            self._made = [*self._made, *alike][-_SUMMANDS:]
        if found is not None:
            seen = Seen(*found, result)
            if self._on_sum is not None:
                self._made = [*self._made, seen][-_SUMMANDS:]
            self._on_product(seen)
        return result

    def _weight_of(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Site, torch.Tensor] | None:
        """Returns the weight of a product and its other factor, or None if the weight is not a parameter."""
        name = func.__name__
        if name == "linear":
            given, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
        elif name == "addmm":
            given, weight = _argument(args, kwargs, 1, "mat1"), _argument(args, kwargs, 2, "mat2")
        elif name == "embedding":
            given, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
            if func is not torch.nn.functional.embedding:
                given, weight = weight, given
        else:
            given, weight = args[0], _argument(args, kwargs, 1, "other" if name == "matmul" else "mat2")
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
            return None
        slot = self._memory.get(weight.untyped_storage().data_ptr())
        if slot is None:
            return None
        use: Use = "embedding" if name == "embedding" else "linear"
        if (
            use == "linear"
            and name != "linear"
            and not (weight.t().is_contiguous() and not weight.is_contiguous())
        ):
            use = "transposed"
        start = (weight.data_ptr() - weight.untyped_storage().data_ptr()) // weight.element_size()
        return Site(slot, start, weight.numel(), use), given

    def _note_other(self, tensor: torch.Tensor) -> torch.Tensor:
        slot = self._memory.get(tensor.untyped_storage().data_ptr())
        if slot is not None and self._on_other is not None:
            self._on_other(slot)
        return tensor

    def _other_summand(self, args: Any) -> tuple[Seen, torch.Tensor] | None:
        """Returns the product whose result is one summand, and the other summand. args: those of the sum."""
        if len(args) < 2 or not all(isinstance(arg, torch.Tensor) for arg in args[:2]):
            return None
        one, other = args[:2]
        first = next((seen for seen in self._made if seen.made is one), None)
        second = next((seen for seen in self._made if seen.made is other), None)
        if (first is None) == (second is None) or one.shape != other.shape:
            return None
        found = (first, other) if first is not None else (second, one)
        return found if found[0] is not None else None  # type: ignore[return-value]


def _argument(args: Any, kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)
