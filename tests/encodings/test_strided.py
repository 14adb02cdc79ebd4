"""Views of a storage are gathered whatever their strides, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.encodings.strided import gather, is_contiguous, view_extent


@st.composite
def views(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A storage and a view of it: permuted, stepped, cut, repeated."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    storage = np.arange(math.prod(shape), dtype=np.int32)
    view = storage.reshape(shape).transpose(draw(st.permutations(range(len(shape)))))
    for axis in range(view.ndim):
        start, step = draw(st.integers(0, view.shape[axis] - 1)), draw(st.integers(1, 3))
        view = view[(slice(None),) * axis + (slice(start, None, step),)]
    if draw(st.booleans()):
        view = np.broadcast_to(view[None], (draw(st.integers(1, 3)), *view.shape))
    return storage, view


@settings(max_examples=300)
@given(pair=views(), data=st.data(), window=st.sampled_from([4, 64, 1 << 20]))
def test_a_view_is_gathered_whatever_its_strides_and_the_window(
    pair: tuple[np.ndarray, np.ndarray], data: st.DataObject, window: int
) -> None:
    storage, view = pair
    raw = storage.view(np.uint8)
    strides = tuple(stride // 4 for stride in view.strides)
    start = data.draw(st.integers(0, view.size))
    stop = data.draw(st.integers(start, view.size))
    offset = view.__array_interface__["data"][0] - storage.__array_interface__["data"][0]

    def read_into(at: int, out: np.ndarray) -> None:
        assert at + out.size <= raw.size
        out[:] = raw[at : at + out.size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arrowquant_dist.encodings.strided._SMALL_NBYTES", window)
        found = np.empty(4 * (stop - start), np.uint8)
        gather(read_into, offset, view.shape, strides, 4, range(start, stop), found)
    assert found.view("<i4").tolist() == view.reshape(-1)[start:stop].tolist()
    assert view_extent(view.shape, strides) == (int(view.max()) - int(view.min()) + 1)
    if is_contiguous(view.shape, strides):
        assert view.flags.c_contiguous


def test_rows_of_a_tall_transposed_view_take_little_memory_and_read_little() -> None:
    rows, columns = 1 << 20, 64
    read: list[int] = []

    def read_into(_: int, out: np.ndarray) -> None:
        read.append(out.size)
        out[:] = 0

    found = np.ones(1000 * columns * 4, np.uint8)
    gather(read_into, 0, (rows, columns), (1, rows), 4, range(1000 * columns), found)
    assert not found.any()
    assert sum(read) == found.size
    assert max(read) <= 64 << 10
