"""A part of a layer: some of its rows and columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.pieces import Piece, pieces
from arrowquant_dist.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Region:
    """Some rows and columns of a layer seen as [rows, columns], with the shape of the result.

    runs: runs of rows, ascending and disjoint; there are several if a dimension within the rows is cut, such as `out`
    of fused experts [experts, out, in]. columns: one run of columns, the same for every row. shape: shape of the
    result.
    """

    layer: StoredLayer
    runs: tuple[range, ...]
    columns: range
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, layer: StoredLayer) -> Self:
        return cls(layer, (range(layer.rows),), range(layer.columns), layer.shape)

    @classmethod
    def cut(cls, layer: StoredLayer, spans: Mapping[int, range]) -> Self:
        """The region cut out by `spans`, {dimension: run of its indices}; other dimensions are whole. Raises
        InvalidConfig for dimensions after the first of the columns."""
        shape, row_dims = layer.shape, layer.row_dims
        beyond = [dim for dim in spans if dim > row_dims]
        if beyond:
            message = (
                f"dimension {beyond[0]} of {list(shape)} cannot be sliced, only the first {row_dims + 1}; read the "
                "whole layer, and slice the tensor"
            )
            raise InvalidConfig(message, layer=layer.name)
        given = tuple(len(spans[dim]) if dim in spans else size for dim, size in enumerate(shape))
        columns = _scaled(spans.get(row_dims), shape[row_dims:], layer.columns)
        return cls(layer, tuple(_runs(shape[:row_dims], spans)), columns, given)

    def is_same(self, other: Region) -> bool:
        """Whether it is the same part of the same layer, in any shape."""
        return (
            self.layer is other.layer and self.runs == other.runs and self.columns == other.columns
        )  # layers are compared by identity: comparing by value would go through all of their blocks

    @property
    def rows(self) -> int:
        return sum(map(len, self.runs))

    @property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @property
    def has_all_columns(self) -> bool:
        return len(self.columns) == self.layer.columns

    @property
    def pieces(self) -> list[tuple[Piece, int]]:
        """The pieces that store its rows, each with the index of its first row among the region's rows."""
        found, done = [], 0
        for run in self.runs:
            for piece in pieces(self.layer, run.start, run.stop):
                first = piece.block.header.row_start + piece.start
                found.append((piece, done + first - run.start))
            done += len(run)
        return found


def _scaled(span: range | None, shape: tuple[int, ...], whole: int) -> range:
    """A run of the first dimension of `shape`, in values of C order; all values if `span` is None. whole: their
    number."""
    if span is None:
        return range(whole)
    inner = math.prod(shape[1:])
    return range(span.start * inner, span.stop * inner)


def _runs(shape: tuple[int, ...], spans: Mapping[int, range]) -> Iterator[range]:
    """Yields the runs, as long as possible, of positions in C order of the box that `spans` cut out of `shape`."""
    cut = [dim for dim in range(len(shape)) if len(spans.get(dim, range(shape[dim]))) != shape[dim]]
    last = max(cut, default=0)
    span = spans.get(last, range(math.prod(shape[: last + 1])))
    inner = math.prod(shape[last + 1 :])
    width = shape[last] if cut else 0
    outer = [0]
    for dim in range(last):
        outer = [at * shape[dim] + i for at in outer for i in spans.get(dim, range(shape[dim]))]
    for at in outer:
        yield range((at * width + span.start) * inner, (at * width + span.stop) * inner)
