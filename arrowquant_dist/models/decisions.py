"""What a model decides by its numbers, such as which experts a token goes to: noted along one path, repeated on the
other.

Two paths of one model differ by little, but where a router's scores are close, that little sends a token elsewhere, and
then nothing on one path is the other's counterpart. Statistics of experts are of the original's routing: the quantized
path is sent the same way, and each expert gets the values that its tokens have there. What that path would give to an
expert of its own choice has no counterpart, and so no target that it could come near to.

A decision is what torch makes of numbers that is none itself: places and truth values (topk, argmax, comparisons). With
places that are repeated come the values that the path itself has there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

# Functions that give values and their places, and which of their arguments is the axis.
_AXES = {"topk": 2, "kthvalue": 2, "sort": 1, "max": 1, "min": 1, "median": 1, "mode": 1}


class Decides(Protocol):
    def __call__(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        """What takes the place of `result`, which torch's function of this name gave."""


class Decisions:
    """Of one batch. note: along the first path. repeat: along the other one, afterwards."""

    def __init__(self) -> None:
        self._noted: list[tuple[str, torch.Tensor]] = []
        self._at = 0
        self._differs = False

    @property
    def are_repeated(self) -> bool:
        """Whether the other path decided as the first one did, at each point."""
        return not self._differs and self._at == len(self._noted)

    def note(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        """See Decides."""
        decided = _decided(args, kwargs, result)
        if decided is not None:
            self._noted.append((name, decided))
        return result

    def repeat(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        """See Decides. From the first call on that is not the one that was noted, the path is left to itself."""
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
    """The places or truth values of a result that was made of numbers; of values and places, the places."""
    found = result[1] if isinstance(result, tuple) and len(result) == 2 else result
    if not isinstance(found, torch.Tensor) or found.is_floating_point() or found.is_complex():
        return None
    given = (*args, *kwargs.values())
    is_of_numbers = any(isinstance(each, torch.Tensor) and each.is_floating_point() for each in given)
    return found if is_of_numbers else None


def _with(
    name: str, result: Any, decided: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The result with other places, and the values that are there; None where it is not known along which axis."""
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
