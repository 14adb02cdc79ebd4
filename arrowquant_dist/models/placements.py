"""Where the values of each layer go in a model, and how they are changed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from arrowquant_dist.models.traced import Derived, Node, Origin, sources_of


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """`value`, made of the layers `sources`, goes into `out`, which has its shape and may be a view of a larger tensor.

    Copying casts to the dtype of `out`.
    """

    sources: tuple[str, ...]
    value: Node
    out: torch.Tensor

    @property
    def is_plain(self) -> bool:
        """Whether the value is an unchanged layer, so that any of its rows can be put in place separately."""
        return isinstance(self.value, Origin)


def placements_of(value: Node, out: torch.Tensor) -> Iterator[Placement]:
    """Yields the parts of `out` that layers can fill one after another. out: has the value's shape and dtype.

    Values assembled from several layers (stacked experts, concatenated gate and up) are taken apart again, into views
    of `out`; what cannot be taken apart is one placement of several layers.
    """
    value = _as_copied(value, out)
    names = tuple(dict.fromkeys(sources_of(value)))
    parts = _parts(value, out) if len(names) > 1 else None
    if parts is None:
        yield Placement(names, value, out)
        return
    for part, place in parts:
        yield from placements_of(part, place)


def _as_copied(value: Node, out: torch.Tensor) -> Node:
    """Returns `value` without the steps that copying into `out` does anyway: its layout and its last cast."""
    while isinstance(value, Derived):
        is_last_cast = value.name == "to" and out.dtype == value.like.dtype
        if value.name not in ("contiguous", "clone", "detach") and not is_last_cast:
            return value
        inner = value.inputs[0]
        if is_last_cast and has_cast(inner):  # two casts round twice, so the first one has to remain
            return inner
        value = inner
    return value


def has_cast(value: Node) -> bool:
    """Returns whether the values were cast to another dtype on the way."""
    return isinstance(value, Derived) and any(
        i.like.dtype != value.like.dtype or has_cast(i) for i in value.inputs
    )


def _parts(value: Node, out: torch.Tensor) -> list[tuple[Node, torch.Tensor]] | None:
    """Returns what `value` is assembled from and where each part goes, or None if it is not assembled."""
    if not isinstance(value, Derived):
        return None
    if any(inner.like.dtype != value.like.dtype for inner in value.inputs):
        return None
    match value.name:
        case "cat" | "concat" | "concatenate":
            return _concatenated(value, out)
        case "stack":
            dim = _dim(value, value.like.dim())
            return [(part, out.select(dim, index)) for index, part in enumerate(value.inputs)]
        case "transpose" | "swapaxes" | "swapdims":
            return _transposed(value, out)
        case "reshape" | "view" | "flatten" | "unflatten" | "squeeze" | "unsqueeze":
            return _reshaped(value, out)
    return None


def _concatenated(value: Derived, out: torch.Tensor) -> list[tuple[Node, torch.Tensor]] | None:
    dim = _dim(value, value.like.dim())
    if any(part.like.dim() != out.dim() for part in value.inputs):  # empty 1-D tensors may be among them
        return None
    sizes = [part.like.shape[dim] for part in value.inputs]
    return [*zip(value.inputs, torch.split(out, sizes, dim), strict=True)]


def _transposed(value: Derived, out: torch.Tensor) -> list[tuple[Node, torch.Tensor]]:
    (inner,) = value.inputs
    names = ("dim0", "dim1") if value.name != "swapaxes" else ("axis0", "axis1")
    rest = [*value.args[1:]]
    dims = [value.kwargs[name] if name in value.kwargs else rest.pop(0) for name in names]
    return [(inner, out.transpose(*dims))]


def _reshaped(value: Derived, out: torch.Tensor) -> list[tuple[Node, torch.Tensor]] | None:
    if len(value.inputs) != 1:
        return None
    try:
        return [(value.inputs[0], out.view(value.inputs[0].like.shape))]
    except RuntimeError:  # `out` is itself a view whose memory does not allow that shape
        return None


def _dim(value: Derived, dims: int) -> int:
    """Returns the dimension of a cat or stack."""
    found = value.kwargs.get("dim", value.args[1] if len(value.args) > 1 else 0)
    return int(found) % dims
