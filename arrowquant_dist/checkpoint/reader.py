"""Reads values of layers as bytes: encodings say which ranges they need, and neighbouring ranges are read together."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from arrowquant_dist.arena import Allocate, aligned, fresh
from arrowquant_dist.checkpoint.table import Layer, SourceFile
from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.format.schema import SCHEMA_VERSION
from arrowquant_dist.storage.base import ObjectInfo, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.traffic import Transferred
from arrowquant_dist.storage.uris import split_uri
from arrowquant_dist.target.manifest import MANIFEST_PATH

if TYPE_CHECKING:
    from arrowquant_dist.dataset.dataset import Dataset
    from arrowquant_dist.dataset.layers import StoredLayer

_GAP_NBYTES = 64 << 10  # reading so many bytes needlessly costs less than another request


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Bytes [start, stop) of an object: the range with number `index` in a request."""

    start: int
    stop: int
    index: int
    itemsize: int


class _Request:
    """The ranges that slices need.

    slices: each layer's slice, as its encoding makes it. ranges: {uri: all ranges in that object}. found: uint8, the
    bytes of each range once it is read. parts: the indices in `found` of each slice's ranges.
    """

    def __init__(self, slices: Sequence[tuple[Layer, int, int]]) -> None:
        self.slices = [layer.encoding.slice(layer, start, stop) for layer, start, stop in slices]
        self.ranges: dict[str, list[_Wanted]] = defaultdict(list)
        self.found: list[np.ndarray] = []
        self.parts: list[range] = []
        for made in self.slices:
            first = len(self.found)
            for piece in made.ranges:
                wanted = _Wanted(piece.start, piece.stop, len(self.found), piece.itemsize)
                self.ranges[piece.uri].append(wanted)
                self.found.append(np.empty(0, np.uint8))
            self.parts.append(range(first, len(self.found)))


class SourceReader:
    """Reads slices of a checkpoint's layers. Thread-safe; stores and datasets are opened once and kept.

    files: those of the plan. It reads them as they were then: an object that has changed since is refused when it is
    opened, one that changes later is noticed by `confirm`.
    """

    def __init__(self, storage: Storage = DEFAULT_STORAGE, files: Iterable[SourceFile] = ()) -> None:
        self._storage = storage
        self._files = {file.uri: file for file in files}
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self._objects: dict[str, tuple[Store, str]] = {}
        self._datasets: dict[str, Dataset] = {}
        self._dataset_stores: dict[str, Store] = {}

    def read(self, slices: Sequence[tuple[Layer, int, int]], allocate: Allocate = fresh) -> list[np.ndarray]:
        """Values [start, stop), in C order, of each (layer, start, stop): little-endian uint8 [n · itemsize].

        Slices that lie within 64 KiB of each other are read at once and share the buffer: a result may be a view that
        keeps the others alive. allocate: provides memory for ranges and decoded values. Every result is aligned to its
        dtype. Memory: the slices, the gaps between them, and what their layers' encodings need besides. Raises
        SourceChanged if the source has changed, NotFound, StorageError, CorruptWeights.
        """
        request = _Request(slices)
        runs = {uri: _coalesce(wanted) for uri, wanted in request.ranges.items()}
        decoded_nbytes = [made.decoded_nbytes for made in request.slices if made.decoded_nbytes]
        allocate = _pieces_of(allocate, runs.values(), decoded_nbytes)
        for uri, runs_of_object in runs.items():
            self._read_runs(uri, runs_of_object, request.found, allocate)
        return [
            made.values(request.found[parts.start : parts.stop], self, allocate)
            for made, parts in zip(request.slices, request.parts, strict=True)
        ]

    def announce(self, slices: Sequence[tuple[Layer, int, int]]) -> None:
        """Announces what the next `read` will ask for, so that local storage can fetch it meanwhile."""
        for uri, wanted in _Request(slices).ranges.items():
            store, path = self._object(uri)
            for piece in wanted:
                if piece.stop > piece.start:
                    store.announce(path, piece.start, piece.stop - piece.start)

    def read_into(self, uri: str, offset: int, out: np.ndarray) -> None:
        """Fills `out`, uint8, with the bytes from `offset` of the object at `uri`. Raises as `read` does."""
        store, path = self._object(uri)
        store.read_into(path, offset, out)

    def dataset(self, uri: str) -> Dataset:
        """The dataset, opened at the first call. Objects read on opening are compared with the plan then, others when
        they are read."""
        from arrowquant_dist.dataset.dataset import Dataset

        with self._lock:
            if uri not in self._datasets:
                store, paths = self._dataset_store(uri)
                for path in paths:
                    store.check(path)
                self._datasets[uri] = Dataset.of(store)
            return self._datasets[uri]

    def known_dataset(self, uri: str, layers: Iterable[StoredLayer], allocate: Allocate = fresh) -> Dataset:
        """The dataset with these of its layers, whose index entries the caller has read already. Its objects are
        compared with the plan as they are read. allocate: provides the memory that they are read into."""
        from arrowquant_dist.dataset.dataset import Dataset

        with self._lock:
            store, _ = self._dataset_store(uri)
        return Dataset(store, {layer.name: layer for layer in layers}, SCHEMA_VERSION, allocate=allocate)

    def check_manifest(self, uri: str) -> None:
        """Raises SourceChanged if the dataset's manifest is among the files and has changed."""
        with self._lock:
            store, paths = self._dataset_store(uri)
        if MANIFEST_PATH in paths:
            store.read(MANIFEST_PATH)

    def confirm(self) -> None:
        """Raises SourceChanged, naming the file, unless all that was read since the last call was and is as planned."""
        with self._lock:
            stores = [*self._stores.values(), *self._dataset_stores.values()]
        for store in stores:
            store.confirm()

    @property
    def transferred(self) -> Transferred:
        """What has been read so far, from all open objects."""
        with self._lock:
            stores = [*self._stores.values(), *self._dataset_stores.values()]
        return sum((store.traffic.total for store in stores), Transferred())

    def close(self) -> None:
        """Closes open files and connections; the reader opens them again when it is used again."""
        with self._lock:
            self._stores.clear()
            self._objects.clear()
            self._datasets.clear()
            self._dataset_stores.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_runs(
        self, uri: str, runs: list[list[_Wanted]], found: list[np.ndarray], allocate: Allocate
    ) -> None:
        store, path = self._object(uri)
        reads = [(run[0].start, allocate(max(piece.stop for piece in run) - run[0].start)) for run in runs]
        store.read_all_into(path, reads)
        for run, (start, buffer) in zip(runs, reads, strict=True):
            for piece in run:
                view = buffer[piece.start - start : piece.stop - start]
                # Kernels are compiled for aligned arrays, but tensors in files need not be aligned.
                found[piece.index] = view.copy() if view.ctypes.data % piece.itemsize else view

    def _object(self, uri: str) -> tuple[Store, str]:
        """The store and path of an object, which is compared with the plan the first time."""
        with self._lock:
            if uri not in self._objects:
                root, path = split_uri(uri)
                if root not in self._stores:
                    self._stores[root] = open_store(root, self._storage)
                if uri in self._files:
                    self._stores[root].check(self._pin(self._stores[root], path, uri))
                self._objects[uri] = self._stores[root], path
            return self._objects[uri]

    def _dataset_store(self, uri: str) -> tuple[Store, list[str]]:
        """A store that reads the dataset's planned objects as they were, and their paths."""
        inside = {file: file.removeprefix(uri).lstrip("/") for file in self._files if _is_in(file, uri)}
        if uri not in self._dataset_stores:
            self._dataset_stores[uri] = open_store(uri, self._storage)
            for file, path in inside.items():
                self._pin(self._dataset_stores[uri], path, file)
        return self._dataset_stores[uri], [*inside.values()]

    def _pin(self, store: Store, path: str, uri: str) -> str:
        """Makes the store read the file at `uri`, its `path`, only as it is in the plan."""
        planned = self._files[uri]
        store.pin(ObjectInfo(path, planned.nbytes, planned.version))
        return path


def _is_in(file: str, uri: str) -> bool:
    return file == uri or file.startswith(f"{uri}/")


def _coalesce(wanted: Iterable[_Wanted]) -> list[list[_Wanted]]:
    """Groups ranges into runs with gaps of up to _GAP_NBYTES, sorted by start. Empty ranges are left out."""
    runs: list[list[_Wanted]] = []
    stop = 0
    for piece in sorted(wanted, key=lambda piece: (piece.start, piece.stop)):
        if piece.start == piece.stop:
            continue
        if runs and piece.start - stop <= _GAP_NBYTES and _may_follow(piece, runs[-1][0].start):
            runs[-1].append(piece)
        else:
            runs.append([piece])
            stop = 0
        stop = max(stop, piece.stop)
    return runs


def _may_follow(piece: _Wanted, start: int) -> bool:
    """Whether a piece may be in a buffer that begins with byte `start` of the object. If it would be misaligned
    there, it has to be copied. That saves a request only for few bytes: copies of many would be memory that the plan
    does not count."""
    return (piece.start - start) % piece.itemsize == 0 or piece.stop - piece.start <= _GAP_NBYTES


def _pieces_of(
    allocate: Allocate, runs: Iterable[list[list[_Wanted]]], decoded_nbytes: list[int]
) -> Allocate:
    """If values are decoded from what is read, allocates memory for both at once, since an arena keeps only its
    largest piece."""
    if not decoded_nbytes:
        return allocate
    sizes = [max(piece.stop for piece in run) - run[0].start for of_object in runs for run in of_object]
    left = allocate(sum(aligned(nbytes) for nbytes in (*sizes, *decoded_nbytes)))

    def take(nbytes: int) -> np.ndarray:
        nonlocal left
        piece, left = left[:nbytes], left[aligned(nbytes) :]
        return piece if piece.size == nbytes else allocate(nbytes)

    return take
