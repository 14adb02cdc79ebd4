"""Values of layers as raw bytes: neighbours in one range read, views gathered, dataset rows decoded."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from arrowquant_dist.arena import Allocate, aligned, fresh
from arrowquant_dist.checkpoint.quantized.columns import TransposedSlice
from arrowquant_dist.checkpoint.quantized.encoding import is_transposed
from arrowquant_dist.checkpoint.quantized.read import ScaledSlice
from arrowquant_dist.checkpoint.strided import decode_strides, gather
from arrowquant_dist.checkpoint.table import DATASET, RAW, SCALED, Layer, SourceFile
from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.traffic import Transferred
from arrowquant_dist.storage.uris import split_uri

if TYPE_CHECKING:
    from arrowquant_dist.dataset.dataset import Dataset

_GAP_NBYTES = 64 << 10  # reading so much too much costs less than another request


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Bytes [start, stop) of an object, the answer to slice number `index`."""

    start: int
    stop: int
    index: int
    itemsize: int


class _Request:
    """What slices take: ranges of objects, and what is to be made of them.

    found: uint8, the answer to each slice, and behind them the ranges that scaled ones are made of. raw: {uri: ranges
    to read into `found`}. scaled: (slice, how to decode it, its ranges in `found`). others: slices read in other ways.
    """

    def __init__(self, slices: Sequence[tuple[Layer, int, int]]) -> None:
        self.found: list[np.ndarray] = [np.empty(0, np.uint8)] * len(slices)
        self.raw: dict[str, list[_Wanted]] = defaultdict(list)
        self.scaled: list[tuple[int, ScaledSlice, range]] = []
        self.others: list[int] = []
        for index, (layer, start, stop) in enumerate(slices):
            if layer.encoding == RAW:
                itemsize = DTYPES[layer.dtype].itemsize
                first = layer.offset + start * itemsize
                wanted = _Wanted(first, first + (stop - start) * itemsize, index, itemsize)
                self.raw[layer.uri].append(wanted)
            elif is_plain(layer):
                self._add_scaled(index, ScaledSlice.of(layer, start, stop))
            else:
                self.others.append(index)

    @property
    def decoded_nbytes(self) -> list[int]:
        return [scaled.decoded_nbytes for _, scaled, _ in self.scaled]

    def _add_scaled(self, index: int, scaled: ScaledSlice) -> None:
        first = len(self.found)
        for piece in scaled.pieces:
            wanted = _Wanted(piece.start, piece.stop, len(self.found), piece.itemsize)
            self.raw[piece.uri].append(wanted)
            self.found.append(np.empty(0, np.uint8))
        self.scaled.append((index, scaled, range(first, len(self.found))))


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
        its dtype. Memory: the slices and the gaps between them; for scaled layers also the codes and scales of the
        rows asked for; 16 MiB more for strided and transposed layers, a stored block more for datasets.
        Raises InvalidCheckpoint for a source that changed, NotFound, StorageError, CorruptWeights.
        """
        request = _Request(slices)
        runs = {uri: _coalesce(wanted) for uri, wanted in request.raw.items()}
        allocate = _pieces_of(allocate, runs.values(), request.decoded_nbytes)
        for uri, runs_of_object in runs.items():
            self._read_raw(uri, runs_of_object, request.found, allocate)
        results = request.found[: len(slices)]
        for index, scaled, parts in request.scaled:
            results[index] = scaled.decode(
                request.found[parts.start : parts.stop], allocate(scaled.decoded_nbytes)
            )
        for index in request.others:
            results[index] = self._read_other(*slices[index], allocate)
        return results

    def announce(self, slices: Sequence[tuple[Layer, int, int]]) -> None:
        """Says what the next `read` is going to ask for; local storage fetches it meanwhile."""
        for uri, wanted in _Request(slices).raw.items():
            store, path = self._object(uri)
            for piece in wanted:
                if piece.stop > piece.start:
                    store.announce(path, piece.start, piece.stop - piece.start)

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
        self, uri: str, runs: list[list[_Wanted]], results: list[np.ndarray], allocate: Allocate
    ) -> None:
        store, path = self._object(uri)
        reads = [(run[0].start, allocate(max(piece.stop for piece in run) - run[0].start)) for run in runs]
        store.read_all_into(path, reads)
        for run, (start, buffer) in zip(runs, reads, strict=True):
            for piece in run:
                view = buffer[piece.start - start : piece.stop - start]
                # Kernels are compiled for aligned arrays; files need not align.
                results[piece.index] = view.copy() if view.ctypes.data % piece.itemsize else view

    def _read_other(self, layer: Layer, start: int, stop: int, allocate: Allocate) -> np.ndarray:
        """Of layers whose slices are no few ranges: decoded or gathered by what knows their form."""
        if layer.encoding == DATASET:
            return self._dataset(layer.uri).read_values(layer.name, start, stop)
        if layer.encoding.startswith(SCALED):
            return TransposedSlice.of(layer, start, stop).read(self._read_into, allocate)
        return self._gather(layer, start, stop)

    def _read_into(self, uri: str, start: int, out: np.ndarray) -> None:
        store, path = self._object(uri)
        store.read_into(path, start, out)

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
                    self._stores[root] = open_store(root, self._storage)
                self._check_unchanged(self._stores[root], path, uri)
                self._objects[uri] = self._stores[root], path
            return self._objects[uri]

    def _dataset(self, uri: str) -> Dataset:
        from arrowquant_dist.dataset.dataset import Dataset

        with self._lock:
            if uri not in self._datasets:
                inside = [file for file in self._files if file == uri or file.startswith(f"{uri}/")]
                store = open_store(uri, self._storage)
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


def is_plain(layer: Layer) -> bool:
    """Whether all that `read` holds of the layer is the memory of its results, codes and scales at most beside them."""
    return layer.encoding == RAW or (layer.encoding.startswith(SCALED) and not is_transposed(layer))


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
