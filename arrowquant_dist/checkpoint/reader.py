"""Values of layers as bytes: each encoding says what it takes, and neighbours come in one range read."""

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

_GAP_NBYTES = 64 << 10  # reading so much too much costs less than another request


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Bytes [start, stop) of an object, which are range number `index` of a request."""

    start: int
    stop: int
    index: int
    itemsize: int


class _Request:
    """What slices take.

    slices: what each layer's encoding makes of them. ranges: {uri: the ranges of all of them there}. found: uint8, the
    bytes of each range once it is read. parts: the ranges of each slice in `found`.
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

    files: those of the plan. Of them it reads what they were then: an object that has changed since is refused when it
    is opened, and one that changes later by `confirm`.
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

        Slices that lie within 64 KiB of each other come in one read and share its buffer: a result may be a
        view that keeps the others alive. allocate: where ranges are read into, and codes decoded. Every result is
        aligned to its dtype. Memory: the slices and the gaps between them, and what the encodings of their layers say.
        Raises SourceChanged for a source that changed, NotFound, StorageError, CorruptWeights.
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
        """Says what the next `read` is going to ask for; local storage fetches it meanwhile."""
        for uri, wanted in _Request(slices).ranges.items():
            store, path = self._object(uri)
            for piece in wanted:
                if piece.stop > piece.start:
                    store.announce(path, piece.start, piece.stop - piece.start)

    def read_into(self, uri: str, offset: int, out: np.ndarray) -> None:
        """The bytes of the object at `uri` from `offset` on fill `out`, uint8. Raises as `read`."""
        store, path = self._object(uri)
        store.read_into(path, offset, out)

    def dataset(self, uri: str) -> Dataset:
        """Opened when it is first asked for; its objects are compared with the plan then, and those that it reads later
        as it reads them."""
        from arrowquant_dist.dataset.dataset import Dataset

        with self._lock:
            if uri not in self._datasets:
                store, paths = self._dataset_store(uri)
                for path in paths:
                    store.check(path)
                self._datasets[uri] = Dataset.of(store)
            return self._datasets[uri]

    def known_dataset(self, uri: str, layers: Iterable[StoredLayer], allocate: Allocate = fresh) -> Dataset:
        """The dataset with these of its layers, of which somebody else has read all that its index says. Its objects
        are compared with the plan as they are read. allocate: where it reads them into."""
        from arrowquant_dist.dataset.dataset import Dataset

        with self._lock:
            store, _ = self._dataset_store(uri)
        return Dataset(store, {layer.name: layer for layer in layers}, SCHEMA_VERSION, allocate=allocate)

    def check_manifest(self, uri: str) -> None:
        """SourceChanged where the dataset's manifest, if there is one among the files, is another by now."""
        with self._lock:
            store, paths = self._dataset_store(uri)
        if MANIFEST_PATH in paths:
            store.read(MANIFEST_PATH)

    def confirm(self) -> None:
        """SourceChanged, which names the file, unless all that was read since the last call was as planned, and is."""
        with self._lock:
            stores = [*self._stores.values(), *self._dataset_stores.values()]
        for store in stores:
            store.confirm()

    @property
    def transferred(self) -> Transferred:
        """What was read so far, of all objects that are open."""
        with self._lock:
            stores = [*self._stores.values(), *self._dataset_stores.values()]
        return sum((store.traffic.total for store in stores), Transferred())

    def close(self) -> None:
        """Lets go of open files and connections; the reader opens them again when it is used again."""
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
                # Kernels are compiled for aligned arrays; files need not align.
                found[piece.index] = view.copy() if view.ctypes.data % piece.itemsize else view

    def _object(self, uri: str) -> tuple[Store, str]:
        """The store and path of an object; compared with the plan the first time."""
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
        """Which reads the planned objects of the dataset as they were, and their paths."""
        inside = {file: file.removeprefix(uri).lstrip("/") for file in self._files if _is_in(file, uri)}
        if uri not in self._dataset_stores:
            self._dataset_stores[uri] = open_store(uri, self._storage)
            for file, path in inside.items():
                self._pin(self._dataset_stores[uri], path, file)
        return self._dataset_stores[uri], [*inside.values()]

    def _pin(self, store: Store, path: str, uri: str) -> str:
        """The store reads the file at `uri`, its `path`, as it is in the plan."""
        planned = self._files[uri]
        store.pin(ObjectInfo(path, planned.nbytes, planned.version))
        return path


def _is_in(file: str, uri: str) -> bool:
    return file == uri or file.startswith(f"{uri}/")


def _coalesce(wanted: Iterable[_Wanted]) -> list[list[_Wanted]]:
    """Runs of ranges with gaps of up to _GAP_NBYTES, sorted by start. Empty ranges are left out."""
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
    """Whether a piece may lie in a buffer that begins with byte `start` of the object. Where it would not be aligned
    there it has to be copied, which is worth a request only for few bytes: many are memory that nobody counts."""
    return (piece.start - start) % piece.itemsize == 0 or piece.stop - piece.start <= _GAP_NBYTES


def _pieces_of(
    allocate: Allocate, runs: Iterable[list[list[_Wanted]]], decoded_nbytes: list[int]
) -> Allocate:
    """Where values are decoded from what is read, memory for both in one piece: an arena keeps only the largest."""
    if not decoded_nbytes:
        return allocate
    sizes = [max(piece.stop for piece in run) - run[0].start for of_object in runs for run in of_object]
    left = allocate(sum(aligned(nbytes) for nbytes in (*sizes, *decoded_nbytes)))

    def take(nbytes: int) -> np.ndarray:
        nonlocal left
        piece, left = left[:nbytes], left[aligned(nbytes) :]
        return piece if piece.size == nbytes else allocate(nbytes)

    return take
