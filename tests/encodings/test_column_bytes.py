"""Columns of a stored matrix are read in few requests, each within a window, whatever lies between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.encodings import column_bytes as module
from arrowquant_dist.encodings.column_bytes import column_bytes
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.strided import WINDOW_NBYTES

MIB = 1 << 20


@dataclass
class Counted:
    """One object, each of whose bytes follows from its place in it."""

    fills: bool = True
    reads: list[int] = field(default_factory=list)

    def read_into(self, _uri: str, offset: int, out: np.ndarray) -> None:
        assert out.ndim == 1
        self.reads.append(out.size)
        if self.fills:
            out[:] = np.arange(offset, offset + out.size) * 31 % 251

    def dataset(self, uri: str) -> object:
        raise NotImplementedError


def expected(place: Place, columns: range) -> np.ndarray:
    rows = np.arange(place.shape[0])[:, None] * place.shape[1] * place.itemsize
    return ((place.offset + rows + np.arange(columns.start, columns.stop)) * 31 % 251).astype(np.uint8)


@given(
    rows=st.integers(1, 40),
    row=st.integers(1, 300),
    edges=st.tuples(st.integers(0, 1200), st.integers(0, 1200)).map(sorted),
    gap=st.sampled_from([0, 1, 100, 10_000]),
    window=st.sampled_from([1, 700, 5000, 1 << 20]),
)
def test_the_bytes_are_those_of_the_columns_however_they_are_read(
    rows: int, row: int, edges: list[int], gap: int, window: int
) -> None:
    place = Place("m.bin", 77, "int32", (rows, row))
    columns = range(min(edges[0], 4 * row), min(edges[1], 4 * row))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LOCAL_REQUEST_NBYTES", gap)
        patch.setattr(module, "WINDOW_NBYTES", window)
        source = Counted()
        found = column_bytes(place, columns, source)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, expected(place, columns))
    whole = found.size if len(columns) == 4 * row else len(columns)
    assert max(source.reads, default=0) <= max(window, whole)


@pytest.mark.parametrize(
    ("uri", "row_nbytes", "width", "most"),
    [
        ("m.bin", 32 << 10, 4 << 10, 7),  # 3,584 rows of a layer that is cut into eight: 112 MiB in windows
        ("s3://b/m.bin", 32 << 10, 4 << 10, 7),
        ("s3://b/m.bin", MIB, 16 << 10, 240),
        ("m.bin", MIB, 16 << 10, 3584),  # a local read costs less than the bytes between
        ("m.bin", 32 << 10, 32 << 10, 1),
    ],
)
def test_requests_are_few(uri: str, row_nbytes: int, width: int, most: int) -> None:
    source, rows = Counted(fills=False), 3584
    place = Place(uri, 0, "uint8", (rows, row_nbytes))
    column_bytes(place, range(width), source)  # type: ignore[arg-type]
    assert len(source.reads) <= most
    assert max(source.reads) <= max(WINDOW_NBYTES, rows * width)
