"""torch views that are not contiguous: gathered from their storage in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.checkpoint.encodings.encoding import (
    REASSEMBLED,
    Encoding,
    ReadCost,
    Source,
    SourceRange,
    Stored,
)
from arrowquant_dist.dtypes import DTYPES

_WINDOW_NBYTES = 16 << 20  # the most that is read at once on top of the result
_SMALL_NBYTES = 64 << 10  # a span this small is one request whatever it wastes
_WASTE = 4  # a span of up to so many times the needed bytes is one request

ReadInto = Callable[[int, np.ndarray], None]  # (offset in the object, uint8 out)


@dataclass(frozen=True, slots=True)
class Strided(Encoding):
    """A view of a storage. strides: in values, one for each dimension; the layer's bytes begin at its first value."""

    strides: tuple[int, ...]
    kind: ClassVar[str] = "strided"
    cost: ClassVar[ReadCost] = REASSEMBLED
    may_be_a_copy: ClassVar[bool] = (
        False  # views of one storage are tied already, and a few rows can be many requests
    )

    @property
    def label(self) -> str:
        return f"a view with strides {list(self.strides)}"

    def slice(self, layer: Stored, start: int, stop: int) -> StridedSlice:
        return StridedSlice(layer, self.strides, range(start, stop))


@dataclass(frozen=True, slots=True)
class StridedSlice:
    """Values of a view. Memory: the rows that they lie in, and _WINDOW_NBYTES."""

    layer: Stored
    strides: tuple[int, ...]
    span: range
    ranges: ClassVar[Sequence[SourceRange]] = ()
    decoded_nbytes: ClassVar[int] = 0

    def values(self, _found: Sequence[np.ndarray], source: Source, _allocate: Allocate) -> np.ndarray:
        layer = self.layer
        read_into, itemsize = partial(source.read_into, layer.uri), DTYPES[layer.dtype].itemsize
        return gather(read_into, layer.offset, layer.shape, self.strides, itemsize, self.span)


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether values lie in C order without gaps; strides of dimensions of size 1 do not matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Values from the first to behind the last one of a view; 0 where it is empty."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def gather(
    read_into: ReadInto,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
    values: range,
) -> np.ndarray:
    """Values `values.start:values.stop` in C order of the view, as uint8 [n · itemsize].

    offset: bytes, of the view's first value. Memory: the rows that hold the values, and _WINDOW_NBYTES.
    """
    if len(values) == 0:
        return np.empty(0, np.uint8)
    if not shape:
        shape, strides = (1,), (1,)
    inner = math.prod(shape[1:])
    while len(shape) > 1 and values.start // inner == (values.stop - 1) // inner:  # inside one row: its rows
        row = values.start // inner
        offset += row * strides[0] * itemsize
        values = range(values.start - row * inner, values.stop - row * inner)
        shape, strides = shape[1:], strides[1:]
        inner = math.prod(shape[1:])
    first, last = values.start // inner, -(-values.stop // inner)
    rows = np.empty((last - first, *shape[1:], itemsize), np.uint8)
    _fill(read_into, offset + first * strides[0] * itemsize, rows, strides)
    skipped = (values.start - first * inner) * itemsize
    return rows.reshape(-1)[skipped : skipped + len(values) * itemsize]


def _fill(read_into: ReadInto, offset: int, out: np.ndarray, strides: tuple[int, ...]) -> None:
    """Reads the view of shape out.shape[:-1] into `out` (uint8, last axis a value's bytes).

    Where its span is too long or too wasteful to read at once, the dimension that spreads it most is halved.
    """
    shape, itemsize = out.shape[:-1], out.shape[-1]
    nbytes = span(shape, strides) * itemsize
    if nbytes <= max(_SMALL_NBYTES, min(_WINDOW_NBYTES, _WASTE * out.size)):
        window = np.empty(nbytes, np.uint8)
        read_into(offset, window)
        byte_strides = [stride * itemsize for stride in strides]
        out[...] = np.lib.stride_tricks.as_strided(window, out.shape, [*byte_strides, 1], writeable=False)
        return
    axis = max(range(len(shape)), key=lambda i: (shape[i] - 1) * strides[i])
    half = shape[axis] // 2
    before: tuple[slice, ...] = (slice(None),) * axis
    _fill(read_into, offset, out[(*before, slice(0, half))], strides)
    _fill(read_into, offset + half * strides[axis] * itemsize, out[(*before, slice(half, None))], strides)
