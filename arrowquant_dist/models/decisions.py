"""Decisions that a model makes from its numbers, such as which experts a token goes to: recorded on one path and
replayed on the other.

Two paths of one model differ by little, but where a router's scores are close, that little sends a token to another
expert, and then the two paths have no corresponding values. Statistics of experts follow the original's routing: the
quantized path is routed the same way, and each expert gets the values that its tokens have on that path. What the
quantized path would send to experts of its own choice has no counterpart, and so no target to approach.

A decision is a result of torch that is not floating-point although it was computed from floating-point numbers: indices
and truth values (topk, argmax, comparisons). Where indices are replayed, the values that go with them are the path's
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

# Functions that return values and their indices, and the position of the axis among their arguments.
_AXES = {"topk": 2, "kthvalue": 2, "sort": 1, "max": 1, "min": 1, "median": 1, "mode": 1}


class Decides(Protocol):
    def __call__(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        """Returns what replaces `result`, which torch's function of this name returned."""


class Decisions:
    """The decisions of one batch. note: records them on the first path. repeat: replays them on the other, later."""

    def __init__(self) -> None:
        self._noted: list[tuple[str, torch.Tensor]] = []
        self._at = 0
        self._differs = False

    @property
    def are_repeated(self) -> bool:
        """Whether the other path came to the same decision points as the first, in the same order."""
        return not self._differs and self._at == len(self._noted)

    def note(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        """Records a decision. See Decides."""
        decided = _decided(args, kwargs, result)
        if decided is not None:
            self._noted.append((name, decided))
        return result

    def repeat(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        """Replays a decision; see Decides. After the first call that does not match the recorded one, nothing more is
        replaced."""
        own = _decided(args, kwargs, result)
        if own is None or self._differs:
            return result
        if self._at < len(self._noted):
            noted, decided = self._noted[self._at]
            if noted == name and (decided.shape, decided.dtype) == (own.shape, own.dtype):
                made = _with(name, result, decided, args, kwargs)
                if made is not None:
                    self._at += 1
                    return made
        self._differs = True
        return result


def _decided(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> torch.Tensor | None:
    """Returns the indices or truth values in a result that was computed from floating-point numbers, or None."""
    found = result[1] if isinstance(result, tuple) and len(result) == 2 else result
    if not isinstance(found, torch.Tensor) or found.is_floating_point() or found.is_complex():
        return None
    given = (*args, *kwargs.values())
    is_of_numbers = any(isinstance(each, torch.Tensor) and each.is_floating_point() for each in given)
    return found if is_of_numbers else None


def _with(
    name: str, result: Any, decided: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Returns the result with the other indices and the values at these; None if the axis is not known."""
    if not isinstance(result, tuple):
        return decided
    if name not in _AXES:
        return None
    given = args[0] if args else kwargs["input"]
    rest = args[_AXES[name] :]
    axis = kwargs.get("dim", kwargs.get("axis", rest[0] if rest else -1))
    is_kept = decided.dim() == given.dim()
    values = given.take_along_dim(decided if is_kept else decided.unsqueeze(axis), axis)
    return type(result)((values if is_kept else values.squeeze(axis), decided))
