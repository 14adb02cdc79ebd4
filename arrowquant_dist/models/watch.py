"""What a model's products see: every input that is multiplied with a weight, or looked up in one, while it runs.

Modules need not be known: torch's own functions are watched, in this thread alone, so that nn.Linear, Conv1D and the
experts that transformers has in one parameter are all seen in the same way, by the memory of their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

Use = Literal["linear", "transposed", "embedding"]
_PRODUCTS = {"linear", "addmm", "embedding", "matmul", "__matmul__", "mm"}
_IN_PLACE = {"add_", "__iadd__", "mul_", "__imul__"}
_SUMS = {"add", "__add__", "__radd__", "add_", "__iadd__"}


class Enough(Exception):
    """Ends a forward of which nothing more is needed. It never leaves models/."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One product. slot: the index of the parameter. start, nvalues: which of its values are the weight, in its memory
    order. use: `linear` x Wᵀ, `transposed` x W, `embedding` rows by number. given: [..., in], or the numbers."""

    slot: int
    start: int
    nvalues: int
    use: Use
    given: torch.Tensor
    made: torch.Tensor


class Watch(TorchFunctionMode):
    """memory: {address of a parameter's memory: its slot}. on_product: called after each product. on_sum: called with
    the other summand of a sum in which a product's result takes part as it is, and is no result of a product itself.
    """

    def __init__(
        self,
        memory: Mapping[int, int],
        on_product: Callable[[Seen], None],
        on_sum: Callable[[Seen, torch.Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self._memory, self._on_product, self._on_sum = memory, on_product, on_sum
        self._made: list[Seen] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        other = self._other_summand(args) if self._on_sum is not None and name in _SUMS else None
        result = func(*args, **kwargs)
        if other is not None and self._on_sum is not None:
            self._on_sum(*other)
        if name in _IN_PLACE:  # from now on that is more than the product's result
            self._made = [seen for seen in self._made if seen.made is not args[0]]
        if name in _PRODUCTS:
            self._product(func, args, kwargs, result)
        return result

    def _product(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: torch.Tensor) -> None:
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
            return
        slot = self._memory.get(weight.untyped_storage().data_ptr())
        if slot is None:
            return
        use: Use = "embedding" if name == "embedding" else "linear"
        if (
            use == "linear"
            and name != "linear"
            and not (weight.t().is_contiguous() and not weight.is_contiguous())
        ):
            use = "transposed"
        size = weight.element_size()
        start = (weight.data_ptr() - weight.untyped_storage().data_ptr()) // size
        seen = Seen(slot, start, weight.numel(), use, given, result)
        if self._on_sum is not None:
            self._made.append(seen)
        self._on_product(seen)

    def _other_summand(self, args: Any) -> tuple[Seen, torch.Tensor] | None:
        """args: of the sum. The product whose result is one summand, and the other one."""
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
