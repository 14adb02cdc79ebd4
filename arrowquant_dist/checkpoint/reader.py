"""Values of layers as raw bytes: neighbours in one range read, views gathered, dataset rows decoded."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.checkpoint.strided import decode_strides, gather
from arrowquant_dist.checkpoint.table import DATASET, RAW, Layer, SourceFile
from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.store.files import Store, split_uri
from arrowquant_dist.store.traffic import Transferred

if TYPE_CHECKING:
    from arrowquant_dist.store.dataset import Dataset

_GAP_NBYTES = 64 << 10  # reading so much too much costs less than another request


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Bytes [start, stop) of an object, the answer to slice number `index`."""

    start: int
    stop: int
    index: int
    itemsize: int


class SourceReader:
    """Reads slices of a checkpoint's layers. Thread-safe; stores and datasets are opened once and kept.

    files: those of the plan. An object of them that has changed since is refused when it is first read.
    """

    def __init__(self, storage: Storage = DEFAULT_STORAGE, files: Iterable[SourceFile] = ()) -> None:
        self._storage = storage
        self._files = {file.uri: file for file in files}
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self._objects: dict[str, tuple[Store, str]] = {}
        self._datasets: dict[str, Dataset] = {}

    def read(self, slices: Sequence[tuple[Layer, int, int]], allocate: Allocate = fresh) -> list[np.ndarray]:
        """Values [start, stop), in C order, of each (layer, start, stop): little-endian uint8 [n · itemsize].

        Slices that lie within 64 KiB of each other come in one read and share its buffer: a result may be a
        view that keeps the others alive. allocate: where raw ranges are read into. Every result is aligned to
        its dtype. Memory: the slices and the gaps between them; 16 MiB more for strided layers, a stored block
        more for datasets.
        Raises InvalidCheckpoint for a source that changed, NotFound, StorageError, CorruptWeights.
        """
        results: list[np.ndarray] = [np.empty(0, np.uint8)] * len(slices)
        raw: dict[str, list[_Wanted]] = defaultdict(list)
        for index, (layer, start, stop) in enumerate(slices):
            if layer.encoding == RAW:
                itemsize = DTYPES[layer.dtype].itemsize
                first = layer.offset + start * itemsize
                raw[layer.uri].append(_Wanted(first, first + (stop - start) * itemsize, index, itemsize))
            elif layer.encoding == DATASET:
                results[index] = self._dataset(layer.uri).read_values(layer.name, start, stop)
            else:
                results[index] = self._gather(layer, start, stop)
        for uri, wanted in raw.items():
            self._read_raw(uri, wanted, results, allocate)
        return results

    def announce(self, slices: Sequence[tuple[Layer, int, int]]) -> None:
        """Says what the next `read` is going to ask for; local storage fetches it meanwhile."""
        for layer, start, stop in slices:
            if layer.encoding == RAW and stop > start:
                itemsize = DTYPES[layer.dtype].itemsize
                store, path = self._object(layer.uri)
                store.announce(path, layer.offset + start * itemsize, (stop - start) * itemsize)

    @property
    def transferred(self) -> Transferred:
        """What was read so far, of all objects that are open."""
        with self._lock:
            totals = [store.traffic.total for store in self._stores.values()]
            totals += [dataset.transferred for dataset in self._datasets.values()]
        return sum(totals, Transferred())

    def close(self) -> None:
        """Lets go of open files and connections; the reader opens them again when it is used again."""
        with self._lock:
            self._stores.clear()
            self._objects.clear()
            self._datasets.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_raw(
        self, uri: str, wanted: list[_Wanted], results: list[np.ndarray], allocate: Allocate
    ) -> None:
        store, path = self._object(uri)
        for run in _coalesce(wanted):
            start = run[0].start
            buffer = allocate(max(piece.stop for piece in run) - start)
            store.read_into(path, start, buffer)
            for piece in run:
                view = buffer[piece.start - start : piece.stop - start]
                # Kernels are compiled for aligned arrays; files need not align.
                results[piece.index] = view.copy() if view.ctypes.data % piece.itemsize else view

    def _gather(self, layer: Layer, start: int, stop: int) -> np.ndarray:
        store, path = self._object(layer.uri)
        strides, itemsize = decode_strides(layer.encoding), DTYPES[layer.dtype].itemsize
        read_into = partial(store.read_into, path)
        return gather(read_into, layer.offset, layer.shape, strides, itemsize, range(start, stop))

    def _object(self, uri: str) -> tuple[Store, str]:
        """The store and path of an object; compared with the plan the first time."""
        with self._lock:
            if uri not in self._objects:
                root, path = split_uri(uri)
                if root not in self._stores:
                    self._stores[root] = Store.open(root, self._storage)
                self._check_unchanged(self._stores[root], path, uri)
                self._objects[uri] = self._stores[root], path
            return self._objects[uri]

    def _dataset(self, uri: str) -> Dataset:
        from arrowquant_dist.store.dataset import Dataset

        with self._lock:
            if uri not in self._datasets:
                inside = [file for file in self._files if file == uri or file.startswith(f"{uri}/")]
                store = Store.open(uri, self._storage)
                for file in inside:
                    self._check_unchanged(store, file.removeprefix(uri).lstrip("/"), file)
                self._datasets[uri] = Dataset.open(uri, self._storage)
            return self._datasets[uri]

    def _check_unchanged(self, store: Store, path: str, uri: str) -> None:
        planned = self._files.get(uri)
        if planned is None:
            return
        info = store.info(path)
        if (info.nbytes, info.version) != (planned.nbytes, planned.version):
            raise InvalidCheckpoint(
                f"the file changed since the plan was made (from {planned.nbytes} bytes, version "
                f"{planned.version}, to {info.nbytes}, {info.version}); put it back, or use --overwrite",
                uri=uri,
            )


def _coalesce(wanted: Iterable[_Wanted]) -> list[list[_Wanted]]:
    """Runs of ranges with gaps of up to _GAP_NBYTES, sorted by start. Empty ranges are left out."""
    runs: list[list[_Wanted]] = []
    stop = 0
    for piece in sorted(wanted, key=lambda piece: (piece.start, piece.stop)):
        if piece.start == piece.stop:
            continue
        if runs and piece.start - stop <= _GAP_NBYTES:
            runs[-1].append(piece)
        else:
            runs.append([piece])
            stop = 0
        stop = max(stop, piece.stop)
    return runs
