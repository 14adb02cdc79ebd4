"""Arrays in an object, as safetensors: written front to back with one run of values in memory, and read by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from arrowquant_dist.checkpoint.digests import RunDigests, digests_name, digests_shape
from arrowquant_dist.checkpoint.safetensors_header import StoredTensor, header_of
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.format.digests import CHUNK_NBYTES, first_wrong_chunk
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.strict_json import parse_json

_NAMES = {"float64": "F64", "float32": "F32", "int32": "I32", "uint8": "U8"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class ArrayDraft:
    """An array that is made when its turn comes. make: gives its values in C order, in runs."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Iterable[np.ndarray]]

    @classmethod
    def of(cls, name: str, values: np.ndarray) -> ArrayDraft:
        return cls(name, values.shape, values.dtype.name, lambda: (values,))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def _with_digests(drafts: Sequence[ArrayDraft]) -> list[ArrayDraft]:
    """The drafts, and behind them their digests (checkpoint/digests.py), which are known once these are written."""
    own, digests = [], []
    for draft in drafts:
        runs = RunDigests()
        own.append(replace(draft, make=partial(_noted, draft, runs)))
        if not draft.nbytes:
            continue
        name, shape = digests_name(draft.name), digests_shape(draft.nbytes)
        digests.append(ArrayDraft(name, shape, "uint8", partial(_digests, runs)))
    return own + digests


def _noted(draft: ArrayDraft, runs: RunDigests) -> Iterator[np.ndarray]:
    for run in draft.make():
        values = np.ascontiguousarray(run)
        runs.add(values)
        yield values


def _digests(runs: RunDigests) -> list[np.ndarray]:
    return [runs.finished()]


def write_arrays(store: Store, path: str, drafts: Sequence[ArrayDraft]) -> int:
    """Writes arrays to a new object and returns its size in bytes. All who write there write the same. The object
    becomes visible as a whole, since its presence means that the job is done: a process that is killed meanwhile leaves
    nothing that the next run would take for it."""
    drafts = _with_digests(drafts)
    stored = (StoredTensor(one.name, _NAMES[one.dtype], one.shape, one.nbytes) for one in drafts)
    with store.open_new(path) as out:
        out.write(header_of(stored))
        for draft in drafts:
            for run in draft.make():
                values = np.ascontiguousarray(run)
                if values.nbytes:
                    out.write(values.reshape(-1).view(np.uint8).data)
        return out.tell()


class ArrayFile:
    """Reads and verifies what `write_arrays` wrote. shapes: {name: shape}. Raises CorruptWeights, NotFound."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        size = int.from_bytes(store.read_range(path, ByteRange(0, 8)).tobytes(), "little")
        header = parse_json(store.read_range(path, ByteRange(8, 8 + size)).tobytes())
        self._start = 8 + size
        self._entries: Mapping[str, Any] = header
        digests = {digests_name(name) for name in header} & header.keys()
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name not in digests}
        self._digests: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def read(self, name: str) -> np.ndarray:
        return self.read_values(name, 0, math.prod(self.shapes[name])).reshape(self.shapes[name])

    def read_values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Values [start, stop) of an array in C order; the result belongs to the caller."""
        entry = self._entries[name]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        if start == stop:
            return np.empty(0, dtype)
        begin, end = (self._start + int(offset) for offset in entry["data_offsets"])
        first, last = start * dtype.itemsize // CHUNK_NBYTES, -(-stop * dtype.itemsize // CHUNK_NBYTES)
        low, high = begin + first * CHUNK_NBYTES, min(begin + last * CHUNK_NBYTES, end)
        data = self._store.read_range(self._path, ByteRange(low, high))
        wrong = first_wrong_chunk(data, first * CHUNK_NBYTES, self._digests_of(name))
        if wrong is not None:
            place = begin + wrong * CHUNK_NBYTES
            message = f"what calibrate has stored of {name!r} is damaged; calibrate again with --overwrite"
            where = place, min(place + CHUNK_NBYTES, high)
            raise CorruptWeights(message, uri=self._store.url(self._path), byte_range=where)
        own = begin + start * dtype.itemsize - low
        return data[own : own + (stop - start) * dtype.itemsize].view(dtype)

    def _digests_of(self, name: str) -> np.ndarray:
        if name not in self._digests:
            entry = self._entries[digests_name(name)]
            begin, end = (self._start + int(offset) for offset in entry["data_offsets"])
            self._digests[name] = self._store.read_range(self._path, ByteRange(begin, end))
        return self._digests[name]


def read_all(store: Store, path: str, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    file = ArrayFile(store, path)
    return {name: file.read(name) for name in (file.shapes if names is None else names)}
