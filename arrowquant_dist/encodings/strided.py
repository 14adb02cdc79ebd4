"""torch views that are not contiguous: gathered from their storage in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import (
    Encoding,
    Source,
    SourceRange,
    Stored,
)

WINDOW_NBYTES = 16 << 20  # maximum that is read at once, in memory besides the result
_SMALL_NBYTES = 64 << 10  # a span this small is read in one request, however much of it is not needed
_WASTE = 4  # a span of up to this many times the needed bytes is read in one request

ReadInto = Callable[[int, np.ndarray], None]  # (offset in the object, uint8 out)


@dataclass(frozen=True, slots=True)
class Strided(Encoding):
    """A view of a storage. strides: stride of each dimension, in values. The layer's `offset` is that of its first
    value."""

    strides: tuple[int, ...]
    kind: ClassVar[str] = "strided"
    batches_ahead: ClassVar[int] = 1
    may_be_a_copy: ClassVar[bool] = (
        False  # views of one storage are tied already, and a few rows can be many requests
    )

    @property
    def label(self) -> str:
        return f"a view with strides {list(self.strides)}"

    def kept_spec(self, _layer: Stored, _source: Source) -> None:
        """None: there are no codes."""

    def slice(self, layer: Stored, start: int, stop: int) -> StridedSlice:
        return StridedSlice(layer, self.strides, range(start, stop))


@dataclass(frozen=True, slots=True)
class StridedSlice:
    """Values of a view."""

    layer: Stored
    strides: tuple[int, ...]
    span: range
    ranges: ClassVar[Sequence[SourceRange]] = ()

    @property
    def decoded_nbytes(self) -> int:
        return len(self.span) * DTYPES[self.layer.dtype].itemsize

    @property
    def beside_nbytes(self) -> int:
        return min(WINDOW_NBYTES, max(_SMALL_NBYTES, _WASTE * self.decoded_nbytes))

    def values(self, _found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        layer, out = self.layer, allocate(self.decoded_nbytes)
        read_into, itemsize = partial(source.read_into, layer.uri), DTYPES[layer.dtype].itemsize
        gather(read_into, layer.offset, layer.shape, self.strides, itemsize, self.span, out)
        return out


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether values lie in C order without gaps; strides of dimensions of size 1 do not matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def view_extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Number of values of the storage from the first to the last one of a view, inclusive; 0 if the view is empty."""
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
    out: np.ndarray,
) -> None:
    """Reads values `values.start:values.stop`, in C order of the view, into `out`: uint8 [n · itemsize], C-contiguous.

    offset: offset in bytes of the view's first value. Memory: WINDOW_NBYTES.
    """
    if len(values) == 0:
        return
    if not shape:
        shape, strides = (1,), (1,)
    inner = math.prod(shape[1:])
    # A row that is only wanted in part is gathered as a view of its own: read whole, it might be larger than all that
    # is wanted.
    first_whole = min(-(-values.start // inner) * inner, values.stop)
    last_whole = max(values.stop // inner * inner, values.start)
    for start, stop in pairwise(sorted({values.start, first_whole, last_whole, values.stop})):
        row = start // inner
        part = out[(start - values.start) * itemsize : (stop - values.start) * itemsize]
        at = offset + row * strides[0] * itemsize
        if start % inner or stop % inner:
            own = range(start - row * inner, stop - row * inner)
            gather(read_into, at, shape[1:], strides[1:], itemsize, own, part)
        else:
            _fill(read_into, at, part.reshape(-1, *shape[1:], itemsize), strides)


def _fill(read_into: ReadInto, offset: int, out: np.ndarray, strides: tuple[int, ...]) -> None:
    """Reads the view of shape out.shape[:-1] into `out` (uint8, the last axis is a value's bytes).

    If its span is too long or too wasteful to read at once, the dimension with the largest extent is halved.
    """
    shape, itemsize = out.shape[:-1], out.shape[-1]
    nbytes = view_extent(shape, strides) * itemsize
    if nbytes <= max(_SMALL_NBYTES, min(WINDOW_NBYTES, _WASTE * out.size)):
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
