"""Reads some columns of a stored matrix, whose bytes are a row apart, in few requests and bounded memory."""

from __future__ import annotations

import numpy as np

from arrowquant_dist.encodings.encoding import Source
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.strided import WINDOW_NBYTES
from arrowquant_dist.storage.uris import is_local

# The cost of a request, in bytes that could be read in the same time: smaller gaps are read along with the columns.
_LOCAL_REQUEST_NBYTES = 64 << 10
_REMOTE_REQUEST_NBYTES = 2 << 20


def column_bytes(place: Place, columns: range, source: Source) -> np.ndarray:
    """Bytes `columns` of each row of a 2-D tensor: uint8 [rows, len(columns)]. Memory besides it: WINDOW_NBYTES."""
    rows, row_nbytes = place.shape[0], place.shape[1] * place.itemsize
    found = np.empty((rows, len(columns)), np.uint8)
    if found.size == 0:
        return found
    gap = row_nbytes - len(columns)
    if gap == 0:
        source.read_into(place.uri, place.offset, found.reshape(-1))
        return found
    at_once = _rows_at_once(row_nbytes, len(columns), is_local=is_local(place.uri))
    window = np.empty(0 if at_once == 1 else min(at_once, rows) * row_nbytes - gap, np.uint8)
    for first in range(0, rows, at_once):
        taken = found[first : first + at_once]
        start = place.offset + first * row_nbytes + columns.start
        if len(taken) == 1:
            source.read_into(place.uri, start, taken[0])
            continue
        part = window[: len(taken) * row_nbytes - gap]
        source.read_into(place.uri, start, part)
        taken[:] = np.lib.stride_tricks.as_strided(part, taken.shape, (row_nbytes, 1), writeable=False)
    return found


def _rows_at_once(row_nbytes: int, width: int, *, is_local: bool) -> int:
    gap = row_nbytes - width
    if gap > (_LOCAL_REQUEST_NBYTES if is_local else _REMOTE_REQUEST_NBYTES):
        return 1
    return max(1, (WINDOW_NBYTES + gap) // row_nbytes)
