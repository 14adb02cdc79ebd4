"""Which part of a layer is requested: rows, columns, and the share of one of several ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from arrowquant_dist.config.checks import check_whole, shown
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.errors import InvalidConfig

_MOST_RANKS = 1 << 16
_MOST_DIMS = 64


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """The share of rank `rank` of `size` in a layer that is cut along dimension `dim` of its shape.

    rank: this rank, from 0 to size - 1. size: number of ranks. dim: dimension to cut along.

    Layers are cut as torch.tensor_split cuts: all ranks get equally many entries, and the first shape[dim] % size ranks
    one more, so that the ranks' parts joined along `dim` are the layer. Cuts need not fall on group boundaries or whole
    packed bytes. A layer without that dimension (such as a bias beside matrices that are cut along 1) is whole on every
    rank. Dimension 2 of fused experts, [experts, out, in], can be cut as well. Raises InvalidConfig, which names the
    field.
    """

    rank: int
    size: int
    dim: int = 0

    def __post_init__(self) -> None:
        check_whole("size", self.size, 1, _MOST_RANKS)
        check_whole("rank", self.rank, 0, self.size - 1)
        check_whole("dim", self.dim, 0, _MOST_DIMS)

    def span(self, whole: range) -> range:
        """Returns this rank's part of `whole`."""
        each, more = divmod(len(whole), self.size)
        start = self.rank * each + min(self.rank, more)
        return whole[start : start + each + (self.rank < more)]


# How layers are cut: all alike, or by a function of the layer's name, which returns None for layers that stay whole.
Parallel = TensorParallel | Callable[[str], TensorParallel | None]


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of each layer that is requested. rows, columns: slices with step 1 of its first and second dimension.

    parallel: takes one rank's share of the part that these select.
    """

    rows: slice | None = None
    columns: slice | None = None
    parallel: Parallel | None = field(default=None)

    def __post_init__(self) -> None:
        if self.parallel is not None and not callable(self.parallel):
            if isinstance(self.parallel, TensorParallel):
                return
            wanted = "pass TensorParallel(rank, size, dim), or a function that returns one"
            raise InvalidConfig(f"parallel is {shown(self.parallel)}; {wanted}")

    @property
    def is_whole(self) -> bool:
        """Whether every layer is read whole."""
        return self.rows is None and self.columns is None and self.parallel is None

    def region(self, layer: StoredLayer, name: str) -> Region:
        """Returns the part of `layer`. name: the name that the layer was requested by, possibly an alias."""
        spans = {}
        if self.rows is not None:
            spans[0] = _span(layer, 0, "rows", self.rows)
        if self.columns is not None:
            spans[1] = _span(layer, 1, "columns", self.columns)
        parallel = self._parallel_of(name)
        if parallel is not None and parallel.dim < len(layer.shape):
            dim = parallel.dim
            spans[dim] = parallel.span(spans.get(dim, range(layer.shape[dim])))
        return Region.cut(layer, spans) if spans else Region.whole(layer)

    def _parallel_of(self, name: str) -> TensorParallel | None:
        if self.parallel is None or isinstance(self.parallel, TensorParallel):
            return self.parallel
        found = self.parallel(name)
        if found is not None and not isinstance(found, TensorParallel):
            message = (
                f"parallel returned {shown(found)} for it; return TensorParallel(rank, size, dim), or None"
            )
            raise InvalidConfig(message, layer=name)
        return found


def _span(layer: StoredLayer, dim: int, word: str, given: Any) -> range:
    if not isinstance(given, slice) or given.step not in {None, 1}:
        message = f"{word} is {shown(given)}; pass a slice with step 1, such as {word}=slice(0, 1024)"
        raise InvalidConfig(message, layer=layer.name)
    if dim >= len(layer.shape):
        kind = "a scalar" if not layer.shape else f"shape {list(layer.shape)}"
        raise InvalidConfig(f"{kind} has no {word}; read it whole", layer=layer.name)
    try:
        start, stop, _ = given.indices(layer.shape[dim])
    except TypeError as error:
        message = f"{word} is {shown(given)}; pass a slice of whole numbers, such as {word}=slice(0, 1024)"
        raise InvalidConfig(message, layer=layer.name) from error
    return range(start, max(start, stop))
