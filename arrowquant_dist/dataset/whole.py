"""Loads whole layers, neighbours together: read by one request, verified and decoded by few calls, from index columns.

assemble.py loads any part of any layer, one layer at a time, which costs several Python objects and calls for each,
during which other threads wait: MiniLM's 104 layers took 42 ms that way after opening, and take 23 ms here. Layers that
this module cannot handle, or finds anything wrong with, are read as in assemble.py, which reports what is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.config import BITS
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.indexed import IndexedLayers
from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.dataset.piece_values import piece_tensor
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.dataset.prefetch import Lane, Load
from arrowquant_dist.dataset.ranges import COALESCE_NBYTES
from arrowquant_dist.dataset.steps import STEP_NBYTES
from arrowquant_dist.dataset.together import MOST_LOADS
from arrowquant_dist.dataset.values import Values
from arrowquant_dist.dataset.windows import PathRange, Window, joined, place_in, windows_nbytes
from arrowquant_dist.dataset.zstd_pages import decompressed_page
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights
from arrowquant_dist.format.digests import are_intact
from arrowquant_dist.format.record import StoredRange
from arrowquant_dist.format.row import Blobs, RowHeader
from arrowquant_dist.tensor import DECODED_BITS
from arrowquant_dist.tensor.source import read_only

Decoded = tuple[np.ndarray, str]
# (row of the kernel's table, stored values to decode, where the decoded values go)
_Waiting = tuple[tuple[int, ...], Blobs[np.ndarray], np.ndarray]
LAYERS_NBYTES = 8 << 20  # memory of the layers in one load: with half of it MiniLM took 4 ms more, of 46
_SMALL_NBYTES, _FEW = 256 << 10, 4  # so few small layers among others are better read along with those
_SHARES = 4  # how many shares a load may take, including the gaps between its values


@dataclass(frozen=True, slots=True)
class WantedLayer:
    """A layer to decode.

    name: stored name of the layer. dtype: dtype to decode floating-point layers to; None for their own. out: uint8
    memory of the layer's size to decode into; None for new memory. copies: number of further copies of this size that
    the caller makes."""

    name: str
    dtype: str | None
    out: np.ndarray | None = None
    copies: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """What all rows of a kind have in common.

    sample: one of these rows. nbytes: size of each value. alone_nbytes: memory for reading one of the rows alone.
    is_copied: whether a large one is better read directly into its destination. table: its row of decode_blocks' table;
    None if that cannot decode it."""

    sample: Piece
    header: RowHeader
    is_float: bool
    nbytes: tuple[int, ...]
    alone_nbytes: int
    is_compressed: bool
    is_copied: bool
    table: tuple[int, ...] | None

    @classmethod
    def of(cls, block: StoredBlock, dataset: Dataset) -> _Kind | None:
        """The kind of a block; None for blocks that are not read here: parts of layers, and layers without values."""
        header, ranges, sample = block.header, block.ranges, Piece(block, 0, block.rows)
        if ranges is None or not header.is_whole or not header.num_params:
            return None
        table = None
        if header.quant_type in BITS and header.quant_axis == 0:
            columns, bits = header.columns, BITS[header.quant_type]
            table = (bits, block.rows, columns, header.groups_per_row, header.group_size or columns)
        return cls(
            sample,
            header,
            DTYPES[header.dtype].is_float,
            tuple(value.nbytes for value in ranges),
            dataset.values_into_nbytes(sample),
            ranges.compression != "none",
            header.quant_type == "none" and dataset.reads_in_steps(block),
            table,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer of a batch. row: its row in the index. dtype: what it is decoded to. nbytes: size of its decoded
    values."""

    wanted: WantedLayer
    row: int
    kind: _Kind
    dtype: str
    nbytes: int


class WholeLayers:
    """Makes loads of whole layers of an indexed dataset.

    share_nbytes: memory that one load may take. allocate: allocates memory for layers without an `out`.
    """

    def __init__(
        self, dataset: Dataset, layers: IndexedLayers, share_nbytes: int, allocate: Allocate, *, verify: bool
    ) -> None:
        self._dataset, self._layers = dataset, layers
        self._share_nbytes, self._allocate, self._verify = share_nbytes, allocate, verify
        self._kinds = [_Kind.of(block, dataset) for block in layers.samples]

    def batches(
        self, wanted: Iterable[WantedLayer]
    ) -> Iterator[tuple[list[WantedLayer], Load[Iterator[Decoded]] | None]]:
        """Yields the layers in their order, as batches with a load for each: as many layers as take no more than
        LAYERS_NBYTES together. The load is None for layers that have to be read in another way.

        The result of a load yields each layer's values in turn, as bits in numpy, [*shape], with their dtype. An error
        about a layer is raised in its turn.
        """
        batch, others = list[_Layer](), list[WantedLayer]()  # one of them is empty
        nbytes, most_nbytes, few = 0, min(LAYERS_NBYTES, self._share_nbytes), 0
        for one in wanted:
            layer = self._layer(one)
            cost = 0 if layer is None else self._cost(layer)
            few = few + 1 if layer is not None else 0
            if layer is None or (others and cost < _SMALL_NBYTES and few <= _FEW):
                if nbytes < _SMALL_NBYTES and len(batch) <= _FEW:  # a norm among matrices of several blocks
                    others += [before.wanted for before in batch]
                else:
                    yield self._begun(batch)
                others.append(one)
                batch, nbytes = [], 0
                continue
            if others:
                yield others, None
                others = []
            if batch and (nbytes + cost > most_nbytes or len(batch) == MOST_LOADS):
                yield self._begun(batch)
                batch, nbytes = [], 0
            batch.append(layer)
            nbytes += cost
        if batch:
            yield self._begun(batch)
        if others:
            yield others, None

    def _begun(self, batch: list[_Layer]) -> tuple[list[WantedLayer], Load[Iterator[Decoded]] | None]:
        """The batch with its load, or with None if the gaps between its values take more room than there is."""
        load = self._load(batch)
        fits = load.peak_nbytes <= _SHARES * self._share_nbytes
        return [layer.wanted for layer in batch], load if fits else None

    def _layer(self, wanted: WantedLayer) -> _Layer | None:
        """The layer to load; None if it is not read here."""
        rows = self._layers.rows_of(wanted.name)
        kind = self._kinds[self._layers.kinds[rows[0]]]
        if kind is None or (kind.is_copied and sum(kind.nbytes) > STEP_NBYTES):
            return None
        dtype = wanted.dtype if kind.is_float and wanted.dtype else kind.header.dtype
        if kind.table is not None and dtype not in DECODED_BITS:
            return None  # it would be decoded to float32 first, which takes more memory
        layer = _Layer(wanted, rows[0], kind, dtype, kind.header.num_params * DTYPES[dtype].itemsize)
        return layer if self._cost(layer) <= self._share_nbytes else None

    def _cost(self, layer: _Layer) -> int:
        """The layer's share of the memory of a load."""
        own = 0 if layer.wanted.out is not None else layer.nbytes
        decompressed = sum(layer.kind.nbytes) if layer.kind.is_compressed else 0
        return own + layer.nbytes * layer.wanted.copies + self._layers.places.nbytes[layer.row] + decompressed

    def _load(self, layers: Sequence[_Layer]) -> Load[Iterator[Decoded]]:
        places = self._layers.places
        values = [
            (places.paths[one.row], offset, offset + nbytes)
            for one in layers
            for offset, nbytes in places.values[one.row]
            if nbytes
        ]
        read = joined(values, COALESCE_NBYTES)
        result_nbytes = sum(
            (0 if one.wanted.out is not None else one.nbytes) + one.nbytes * one.wanted.copies
            for one in layers
        )
        decompressed = sum(sum(one.kind.nbytes) for one in layers if one.kind.is_compressed)
        alone_nbytes = max(one.kind.alone_nbytes for one in layers)
        peak_nbytes = result_nbytes + windows_nbytes(read) + max(decompressed, alone_nbytes)

        def begin() -> tuple[Sequence[Lane], Callable[[], Iterator[Decoded]]]:
            outs = [
                self._allocate(one.nbytes) if one.wanted.out is None else one.wanted.out for one in layers
            ]
            failed: dict[int, ArrowQuantError] = {}
            lane = partial(self._fill, layers, read, outs, failed)
            return [lane], lambda: _in_turn(layers, outs, failed)

        return Load(layers[0].wanted.name, peak_nbytes, result_nbytes, begin)

    def _fill(
        self,
        layers: Sequence[_Layer],
        read: Sequence[PathRange],
        outs: Sequence[np.ndarray],
        failed: dict[int, ArrowQuantError],
    ) -> None:
        """Fills `outs`. failed: receives the error of the first layer that cannot be filled, by its turn."""
        if self._fill_together(layers, read, outs):
            return
        for turn, (layer, out) in enumerate(zip(layers, outs, strict=True)):
            block = self._block(layer)
            try:
                self._dataset.values_into(Piece(block, 0, block.rows), out, layer.dtype, verify=self._verify)
            except ArrowQuantError as error:  # raised in the turn of the layer that it is about
                failed[turn] = error
                return

    def _fill_together(
        self, layers: Sequence[_Layer], read: Sequence[PathRange], outs: Sequence[np.ndarray]
    ) -> bool:
        """Fills `outs` from few requests. Returns whether that was possible and nothing was wrong."""
        by_path = {self._layers.places.paths[one.row]: one for one in layers}
        memory, windows = self._dataset.read_places(read, lambda path: self._block(by_path[path]))
        if len(windows) < len(read):
            return False
        memory = read_only(memory)
        blocks: defaultdict[str, list[_Waiting]] = defaultdict(list)
        for layer, out in zip(layers, outs, strict=True):
            stored = self._stored(layer, memory, windows)
            if stored is None:
                return False
            table, dtype = layer.kind.table, layer.dtype
            if table is not None:
                blocks[dtype].append((table, stored, out.view(DECODED_BITS[dtype])))
            elif not _put(layer, stored, out):
                return False
        return all(_decode(waiting) for waiting in blocks.values())

    def _stored(
        self, layer: _Layer, memory: np.ndarray, windows: Sequence[Window]
    ) -> Blobs[np.ndarray] | None:
        """The layer's stored values, decompressed and verified; None if they are not what was written."""
        places, row = self._layers.places, layer.row
        values = []
        for offset, nbytes in places.values[row]:
            at = place_in(windows, places.paths[row], offset, nbytes) if nbytes else 0
            if at is None:
                return None
            values.append(memory[at : at + nbytes])
        if layer.kind.is_compressed:
            try:
                values = [
                    read_only(decompressed_page(value, StoredRange(at, stored, nbytes)))
                    for value, (at, stored), nbytes in zip(
                        values, places.values[row], layer.kind.nbytes, strict=True
                    )
                ]
            except CorruptWeights:
                return None
        found = Blobs(*values)
        if self._verify and not are_intact(
            found.data, found.scales, found.zero_points, found.chunk_digests, self._layers.checksums[row]
        ):
            return None
        return found

    def _block(self, layer: _Layer) -> StoredBlock:
        return self._layers[layer.wanted.name].blocks[0]


def _put(layer: _Layer, stored: Blobs[np.ndarray], out: np.ndarray) -> bool:
    """Fills `out` with a layer that decode_blocks does not decode; False if a scale is not finite."""
    header = layer.kind.header
    if header.quant_type == "none" and layer.dtype == header.dtype:
        np.copyto(out, stored.data)
        return True
    values = Values.of(stored)
    if not all(np.isfinite(numbers).all() for numbers in (values.blobs.scales, values.blobs.zero_points)):
        return False
    piece_tensor(values, layer.kind.sample).values_into(out, layer.dtype)
    return True


def _decode(blocks: Sequence[_Waiting]) -> bool:
    """Decodes the values of each block, all to one dtype; False if a scale is not finite."""
    from arrowquant_dist.kernels.decode import COLUMNS, GROUPS, MOST_BLOCKS, ROWS, decode_blocks

    rows, stored, outs = zip(*blocks, strict=True)
    table = np.array(rows, np.int64)
    numbers = np.empty(2 * int((table[:, ROWS] * table[:, GROUPS]).max()), np.float32)
    scratch = np.empty(int(table[:, COLUMNS].max()) + 8, np.uint8)
    arrays = (*zip(*((of.data, of.scales, of.zero_points) for of in stored), strict=True), outs)
    for first in range(0, len(blocks), MOST_BLOCKS):
        some = slice(first, first + MOST_BLOCKS)
        codes, scales, zero_points, places = (
            (*of[some], *[of[0][:0]] * (first + MOST_BLOCKS - len(of))) for of in arrays
        )
        words = numbers.view(np.uint8)
        if decode_blocks(codes, scales, zero_points, table[some], places, numbers, words, scratch) >= 0:
            return False
    return True


def _in_turn(
    layers: Sequence[_Layer], outs: list[np.ndarray], failed: dict[int, ArrowQuantError]
) -> Iterator[Decoded]:
    """Yields each layer's values, without keeping a reference to them."""
    for turn, layer in enumerate(layers):
        if turn in failed:
            raise failed[turn]
        yield outs.pop(0).view(DTYPES[layer.dtype].bits).reshape(layer.kind.header.shape), layer.dtype
