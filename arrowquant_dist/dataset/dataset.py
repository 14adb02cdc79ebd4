"""A dataset at rest, seen as layers to read: a manifest with its index, or V1 and V2 Parquet files without one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from arrowquant_dist.arena import Allocate, fresh, whole_pages
from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.dataset.bare import BareFile, OpenRowGroup
from arrowquant_dist.dataset.bare_folder import bare_paths
from arrowquant_dist.dataset.explained import Explained
from arrowquant_dist.dataset.indexed import indexed_layers
from arrowquant_dist.dataset.layers import StoredBlock, StoredLayer, group_layers
from arrowquant_dist.dataset.piece_values import piece_tensor, read_range
from arrowquant_dist.dataset.pieces import Piece, pieces
from arrowquant_dist.dataset.ranges import (
    decompressed,
    fetched_nbytes,
    peak_nbytes,
    wanted_ranges,
)
from arrowquant_dist.dataset.reads import Reads
from arrowquant_dist.dataset.steps import STEP_NBYTES, BlockReader, steps_nbytes
from arrowquant_dist.dataset.values import Values, check_values
from arrowquant_dist.dataset.windows import PathRange, Window, laid_out
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import (
    CorruptWeights,
    CutObject,
    IncompleteDataset,
    InvalidConfig,
    NotFound,
    StorageError,
    UnknownLayer,
    counted,
    listed,
)
from arrowquant_dist.format.record import BlobRanges
from arrowquant_dist.format.schema import SCHEMA_VERSION
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.traffic import Transferred
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.tensor import QuantizedTensor

_NO_BYTES = ByteRange(0, 0)


class Dataset:
    """The layers of one dataset, readable whole, by block or by rows. Thread-safe.

    layers: layers by name, in storage order. aliases: {name: stored name} of tied tensors. schema_version: `1` or `2`.
    manifest: None for bare files, whose rows are verified but whose completeness is not known. allocate: allocates the
    memory for bytes read from indexed parts, and for the joined codes of several blocks. The default for stores over a
    network, where many blocks are read at a time, is memory that goes back to the system as soon as it is freed (for
    local parts this took 0.14 s instead of 0.126).
    """

    def __init__(
        self,
        store: Store,
        layers: Mapping[str, StoredLayer],
        schema_version: str,
        *,
        manifest: Manifest | None = None,
        files: Mapping[str, BareFile] | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        self.uri = store.uri
        self.layers = layers
        self.aliases: Mapping[str, str] = manifest.aliases if manifest is not None else {}
        self.schema_version = schema_version
        self.manifest = manifest
        self.store = store
        self._files = files or {}
        self.allocate: Allocate = allocate or (fresh if store.is_near else whole_pages)
        self._reads = Reads(store, self.allocate)

    @classmethod
    def open(cls, uri: str, storage: Storage = DEFAULT_STORAGE) -> Dataset:
        """Opens a dataset and reads all but its weights: manifest and index, or the small columns of each Parquet file.

        uri: a target, a V1 or V2 file, or a folder of such files. Raises NotFound, CorruptWeights if index, rows or
        shapes contradict each other, and IncompleteDataset for an unfinished target and for missing rows.
        """
        return cls.of(open_store(uri, storage))

    @classmethod
    def of(cls, store: Store) -> Dataset:
        """Like `open`, for the dataset at `store`."""
        dataset = cls.unconfirmed(store)
        if dataset.manifest is not None:
            dataset.manifest.refuse_cleared(store)
        return dataset

    @classmethod
    def unconfirmed(cls, store: Store) -> Dataset:
        """Like `of`, without the request that checks whether parts exist: for callers that notice when they read."""
        return _open_indexed(store) if store.has_file(MANIFEST_PATH) else _open_bare(store)

    @property
    def transferred(self) -> Transferred:
        """Traffic of the store so far."""
        return self.store.traffic.total

    @property
    def kept_nbytes(self) -> int:
        """Memory held between reads: the open row group of bare files whose row groups have several rows."""
        return max((file.kept_nbytes for file in self._files.values()), default=0)

    @property
    def nbytes_read(self) -> int:
        """Bytes of weights requested from the store so far."""
        return self._reads.counter.nbytes

    def layer(self, name: str) -> StoredLayer:
        """The stored layer of this name or alias. Raises UnknownLayer, which suggests similar names."""
        stored = self.layers.get(self.aliases.get(name, name))
        if stored is None:
            near = difflib.get_close_matches(name, [*self.layers, *self.aliases], 3, 0.5)
            hint = f"did you mean {listed(near)}?" if near else f"it has {counted(len(self.layers), 'other')}"
            raise UnknownLayer(f"the dataset has no such layer; {hint}", layer=name, uri=self.uri)
        return stored

    def read_block(self, block: StoredBlock, *, verify: bool = True) -> QuantizedTensor:
        """A whole block, in memory of its own. verify: whether to verify its checksums. Raises CorruptWeights, with the
        byte range if data differs."""
        return self.read_piece(Piece(block, 0, block.header.rows), verify=verify)

    def read_rows(self, name: str, start: int, stop: int, *, verify: bool = True) -> list[QuantizedTensor]:
        """Rows [start, stop) of a layer seen as [prod(shape[:row_dims]), columns], one tensor for each block.

        If the dataset is indexed and uncompressed, only the bytes of these rows are read (to verify them, their 1 MiB
        chunks), else the whole blocks that contain them. Raises InvalidConfig for rows outside the layer.
        """
        layer = self.layer(name)
        if not 0 <= start <= stop <= layer.rows:
            message = f"rows {start}-{stop} are not within its {layer.rows}; ask for rows that it has"
            raise InvalidConfig(message, layer=name, uri=self.uri)
        return [self.read_piece(piece, verify=verify) for piece in pieces(layer, start, stop)]

    def read_values(
        self, name: str, start: int, stop: int, allocate: Allocate = fresh, *, verify: bool = True
    ) -> np.ndarray:
        """Values [start, stop) of a layer in C order, decoded to its dtype: uint8 [n · itemsize], from `allocate`.

        Memory besides: a stored row, and its decoded values if only some of them are wanted.
        """
        layer = self.layer(name)
        itemsize, columns = DTYPES[layer.dtype].itemsize, layer.columns
        out = allocate(max(stop - start, 0) * itemsize)
        if not out.size:
            return out
        for piece in pieces(layer, start // columns, -(-stop // columns)):
            first = (piece.block.header.row_start + piece.start) * columns
            last = first + piece.rows * columns
            tensor = self.read_piece(piece, verify=verify)
            part = out[(max(first, start) - start) * itemsize : (min(last, stop) - start) * itemsize]
            if start <= first and last <= stop:
                tensor.values_into(part, layer.dtype)
            else:
                skipped = (max(first, start) - first) * itemsize
                part[:] = tensor.values().reshape(-1).view(np.uint8)[skipped : skipped + part.size]
        return out

    @property
    def largest_row_nbytes(self) -> int:
        """Peak memory for reading any one row, its codes included, plus what is held from row to row."""
        blocks = (block for layer in self.layers.values() for block in layer.blocks)
        rows = (self.piece_nbytes(Piece(block, 0, block.header.rows)) for block in blocks)
        return self.kept_nbytes + max(rows, default=0)

    def piece_nbytes(self, piece: Piece, *, verify: bool = True) -> int:
        """Peak memory of `read_piece`, its result included."""
        block = piece.block
        if block.ranges is not None:
            return peak_nbytes(block.ranges, read_range(piece, verify=verify))
        copies = 2 if self.kept_nbytes else 4  # decoded and our copy; a page of its own in two more forms
        return copies * block.stored_nbytes

    def fetched_nbytes(self, piece: Piece) -> int:
        """The share of `piece_nbytes` for stored bytes, when a whole block of an indexed dataset is read."""
        ranges = piece.block.ranges
        return fetched_nbytes(ranges, ByteRange(0, ranges.data.nbytes)) if ranges is not None else 0

    def scales_nbytes(self, piece: Piece) -> int:
        """Peak memory of `read_scales`, its result included."""
        ranges = piece.block.ranges
        return peak_nbytes(ranges, _NO_BYTES) if ranges is not None else self.piece_nbytes(piece)

    def values_into_nbytes(self, piece: Piece, *, verify: bool = True) -> int:
        """Peak memory of `values_into`, without the array that it fills and without what converting dtypes takes."""
        ranges = piece.block.ranges
        if ranges is None or not self.reads_in_steps(piece.block):
            return self.piece_nbytes(piece, verify=verify)
        return steps_nbytes(piece.block.row_nbytes, ranges)

    def values_into(
        self, piece: Piece, out: np.ndarray, dtype: str, columns: range | None = None, *, verify: bool = True
    ) -> None:
        """Decodes a piece into `out`. out, dtype, columns: as in QuantizedTensor.values_into; the rest is as in
        `read_piece`."""
        block, ranges = piece.block, piece.block.ranges
        if columns is None and piece.is_whole and self._from_window(piece, out, dtype, verify=verify):
            return
        if ranges is None or not self.reads_in_steps(block):
            self.read_piece(piece, verify=verify).values_into(out, dtype, columns)
            return
        row, reader = block.header, self._reader(block, ranges, verify=verify)
        is_raw = row.quant_type == "none" and row.dtype == dtype and columns is None
        with Explained(block, reader.url):
            if is_raw and out.size > STEP_NBYTES:
                reader.raw_into(piece.start, out)
                return
            rows = out.reshape(piece.rows, -1) if out.size else out.reshape(piece.rows, 0)
            for values, first, stop in reader.steps(piece.start, piece.stop):
                place = rows[first - piece.start : stop - piece.start].reshape(-1)
                piece_tensor(values, Piece(block, first, stop)).values_into(place, dtype, columns)

    def _from_window(self, piece: Piece, out: np.ndarray, dtype: str, *, verify: bool) -> bool:
        """`values_into` for a whole uncompressed block that was read together with others; False if it was not."""
        block, ranges = piece.block, piece.block.ranges
        if ranges is None or ranges.compression != "none":
            return False
        places = self._reads.windows.places_of(block.path, ranges)
        if places is None:
            return False
        memory, url = self._reads.windows.memory, self.store.url(block.path)
        stored = [memory[at : at + value.stored_nbytes] for at, value in zip(places, ranges, strict=True)]
        values = Values.of(stored)
        check_values(values, block, ranges.data, url, verify=verify)
        piece_tensor(values, piece).values_into(out, dtype)
        return True

    def read_piece(
        self, piece: Piece, *, verify: bool = True, allocate: Allocate | None = None
    ) -> QuantizedTensor:
        """Some rows of one block, in memory of their own; otherwise like `read_block`. allocate: allocates the memory
        for the codes of an uncompressed local block, and for the rest of their chunks."""
        wanted = read_range(piece, verify=verify)
        return piece_tensor(self._read(piece.block, wanted, allocate, verify=verify), piece)

    def read_scales(self, piece: Piece, *, verify: bool = True) -> QuantizedTensor:
        """Like `read_piece`, but without codes, which are not read if the dataset is indexed."""
        tensor = piece_tensor(self._read(piece.block, _NO_BYTES, verify=verify), piece)
        return replace(tensor, codes=tensor.codes[:0])

    def _read(
        self, block: StoredBlock, wanted: ByteRange, allocate: Allocate | None = None, *, verify: bool
    ) -> Values:
        """The block's values, of its data only the bytes `wanted`, if these can be read alone."""
        if block.ranges is not None and wanted.nbytes > STEP_NBYTES and self.reads_in_steps(block):
            reader = self._reader(block, block.ranges, verify=verify)
            with Explained(block, reader.url):
                return reader.values(wanted, allocate or self.allocate)
        url = self.store.url(block.path)
        if block.ranges is None:
            file = self._files[block.path]
            with Explained(block, url):
                values, place = file.read(block, self._reads.counter), file.data_range(block)
        else:
            place = block.ranges.data
            with Explained(block, url):
                places = wanted_ranges(block.ranges, wanted)
                stored = self._reads.fetch_all(block.path, self._reads.gap_nbytes(block), places)
                values = decompressed(stored, places, block.ranges, wanted)
        check_values(values, block, place, url, verify=verify)
        return values

    @contextmanager
    def reading_together(self, together: Sequence[Piece], places: Sequence[PathRange]) -> Iterator[None]:
        """A context that reads several small blocks in few requests and holds their bytes, from which `values_into`
        takes them in this thread. places: the ranges to read, from `joined_pieces`."""
        memory, held = self.read_places(
            places, lambda path: next(piece.block for piece in together if piece.block.path == path)
        )
        with self._reads.windows.holding(held, memory):
            yield

    def read_places(
        self, places: Sequence[PathRange], block_in: Callable[[str], StoredBlock]
    ) -> tuple[np.ndarray, list[Window]]:
        """Reads ranges of objects into memory of this thread, which is valid until the thread reads others this way.

        Returns the memory, uint8, and the windows that say where in it the bytes are. Ranges that cannot be read are
        left out: they are to be read alone, which raises the error if somebody needs them. block_in: returns one of the
        blocks that are read from an object, for errors. Raises StorageError if repeated requests have failed.
        """
        memory, held = self._reads.windows.memory_for(places), []
        for window in laid_out(places):
            try:
                out = memory[window.at : window.at + window.place.nbytes]
                self._reads.into(window.path, window.place.start, out)
            except (StorageError, NotFound) as error:
                if self.store.repeats_reads and not isinstance(error, (CutObject, NotFound)):
                    with Explained(block_in(window.path), self.store.url(window.path)):
                        raise
            else:
                held.append(window)
        return memory, held

    @property
    def is_reading_together(self) -> bool:
        """Whether this thread is within `reading_together` and some bytes could be read that way."""
        return self._reads.windows.are_held

    def reads_in_steps(self, block: StoredBlock) -> bool:
        """Whether `values_into` only takes the memory of a step, and only reads the chunks of the rows wanted."""
        return self.store.is_near and block.ranges is not None and block.ranges.compression == "none"

    def _reader(self, block: StoredBlock, ranges: BlobRanges, *, verify: bool) -> BlockReader:
        return BlockReader(block, ranges, self.store.url(block.path), self._reads, verify)


def alias_errors(manifest: Manifest, layers: Container[str], uri: str) -> list[CorruptWeights]:
    """Errors for aliases that point to no layer, or have the name of one. uri: that of the manifest."""
    return [
        CorruptWeights(f"it is tied to {stored!r}, which is impossible; quantize again", layer=alias, uri=uri)
        for alias, stored in manifest.aliases.items()
        if stored not in layers or alias in layers
    ]


def _open_indexed(store: Store) -> Dataset:
    manifest = Manifest.read(store)
    try:
        table = manifest.read_table(store)
    except NotFound as error:
        message = "the index that the manifest names is gone; fetch it again, or quantize with --repair"
        raise IncompleteDataset(message, uri=store.url(manifest.index.path)) from error
    layers, errors = indexed_layers(table, store.url)
    errors += alias_errors(manifest, layers, store.url(MANIFEST_PATH))
    if errors:
        raise errors[0]
    return Dataset(store, layers, SCHEMA_VERSION, manifest=manifest)


def _open_bare(store: Store) -> Dataset:
    paths = bare_paths(store)
    kept = OpenRowGroup()
    files = {path: BareFile(store, path, kept) for path in paths}
    blocks = [block for file in files.values() for block in file.blocks]
    layers, errors = group_layers(blocks, store.url)
    if errors:
        raise errors[0]
    for block in blocks:
        problem = files[block.path].size_problem(block)
        if problem is not None:
            message = f"{problem}; fetch the object again"
            raise CorruptWeights(message, layer=block.header.layer_name, uri=store.url(block.path))
    return Dataset(store, layers, max(file.version for file in files.values()), files=files)
