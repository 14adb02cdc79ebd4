"""Reads and packs the rows of steps: at once, or as loads that take memory from a budget (dataset/prefetch.py)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.dataset.assemble import Assembler
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.prefetch import Lane, Load
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.export.files import OutputFile, Step
from arrowquant_dist.export.steps import region_of, step_nbytes
from arrowquant_dist.export.tensors import LayerExport
from arrowquant_dist.tensor import QuantizedTensor, quantize_values

Packed = list[np.ndarray]  # the next bytes of each tensor of a step: uint8
TensorParts = Iterator[tuple[int, np.ndarray]]  # the same with tensors' indices, perhaps several parts of one
Room = Callable[[int], np.ndarray | None]  # nbytes → where the next part may be made (ObjectWriter.room)
_NONE = np.empty(0, np.float32)
_ALIGNMENT = 8  # bytes, enough for values of any dtype
_ANNOUNCED = 16  # steps on their way into the page cache before they are read: a third of a second
_PART_NBYTES = 6 << 20  # of a tensor: three quarters of a piece of a direct write


@dataclass(frozen=True, slots=True)
class StepReader:
    """Makes a worker's loads. dataset: the dataset to read. take: allocates memory for packed bytes. source,
    source_layers: the checkpoint that layers are quantized anew from, if it is not the dataset, and {name: layer}.
    """

    dataset: Dataset
    take: Allocate
    source: SourceReader | None = None
    source_layers: dict[str, Layer] | None = None

    def load(self, file: OutputFile, step: Step) -> Load[Packed]:
        layer = file.layers[step.number]
        packed: list[Packed] = []

        def work() -> None:
            packed.append(self._packed(layer, step))

        def begin() -> tuple[Sequence[Lane], Callable[[], Packed]]:
            packed.clear()
            return [work], packed.pop

        # packed bytes may be a view of what was read
        held = min(step.peak_nbytes, max(step_nbytes(layer, step), step.source_nbytes))
        return Load(step.layer_name, step.peak_nbytes, held, begin)

    def one_by_one(self, file: OutputFile, room: Room) -> Generator[TensorParts]:
        """Yields what each step of the file packs, made on request in the calling thread. room: that of the file.

        Reads that need the disk are announced early: otherwise they would wait behind all that is being written to it.
        """
        announced = 0
        for number, step in enumerate(file.steps):
            for ahead in file.steps[announced : number + _ANNOUNCED]:
                self._announce(file.layers[ahead.number], ahead)
            announced = number + _ANNOUNCED
            yield self._parts(file.layers[step.number], step, room)

    def _announce(self, layer: LayerExport, step: Step) -> None:
        if layer.spec is not None or step.needs != "rows":
            return
        for piece, _ in region_of(self.dataset.layers[layer.layer], step).pieces:
            ranges = piece.block.ranges
            if ranges is not None and ranges.data.stored_nbytes:  # skips layers without values
                start = min(value.offset for value in ranges if value.stored_nbytes)
                stop = max(value.offset + value.stored_nbytes for value in ranges)
                self.dataset.store.announce(piece.block.path, start, stop - start)

    def _parts(self, layer: LayerExport, step: Step, room: Room) -> TensorParts:
        if self._goes_by_block(layer, step):
            yield from self._parts_by_block(layer, step, room)
            return
        rows = self._rows(layer, step)
        for tensor in step.tensors:
            yield from self._parts_of(layer, tensor, rows, room)

    def _parts_by_block(self, layer: LayerExport, step: Step, room: Room) -> TensorParts:
        """Yields parts of the first tensor for each row block, whose codes are freed before the next block is read and
        are not copied to be contiguous. The other tensors are made from the rest of the blocks' contents."""
        first, *others = step.tensors
        region, small = region_of(self.dataset.layers[layer.layer], step), []
        for block in self._assembler.by_block(region):
            rows = replace(block, shape=block.matrix_shape, row_dims=1)
            yield from self._parts_of(layer, first, rows, room)
            small.append(replace(rows, codes=_NONE.view(np.uint8)))
            del block, rows
        joined = self._assembler.joined_scales(region, small)
        for tensor in others:
            yield from self._parts_of(layer, tensor, replace(joined, row_dims=1), room)

    def _goes_by_block(self, layer: LayerExport, step: Step) -> bool:
        """Returns whether a single tensor is made from codes, and its row blocks are runs that the packer accepts."""
        first, *others = (layer.tensors[tensor].needs for tensor in step.tensors)
        stored = self.dataset.layers[layer.layer]
        if first != "rows" or "rows" in others or layer.spec is not None or stored.quant_type == "mixed":
            return False
        found = region_of(stored, step).pieces
        ends = [start + piece.rows for piece, start in found[:-1]]
        return len(found) > 1 and not any(end % layer.packer.row_multiple for end in ends)

    def _parts_of(self, layer: LayerExport, tensor: int, rows: QuantizedTensor, room: Room) -> TensorParts:
        for part in _runs_of(layer, tensor, rows):
            yield tensor, self._pack(layer, tensor, part, _first_from(room, self.take))

    def _packed(self, layer: LayerExport, step: Step) -> Packed:
        rows = self._rows(layer, step)
        return [self._pack(layer, tensor, rows, self.take) for tensor in step.tensors]

    def _pack(self, layer: LayerExport, tensor: int, rows: QuantizedTensor, take: Allocate) -> np.ndarray:
        try:
            return layer.packer.pack(tensor, rows, take)
        except CorruptWeights as error:  # from a packer, which does not know whose rows they are
            raise CorruptWeights(error.message, layer=layer.layer, uri=self.dataset.uri) from error

    def _rows(self, layer: LayerExport, step: Step) -> QuantizedTensor:
        stored = self.dataset.layers[layer.layer]
        shape = (step.rows, layer.columns)
        if step.needs == "nothing":
            return QuantizedTensor(
                (0, layer.columns), stored.dtype, "none", _NONE.view(np.uint8), _NONE, _NONE, -1, 0
            )
        if layer.spec is not None:
            values = self._values(layer, step)
            spec = replace(layer.spec, row_dims=1)
            first = step.row_start * layer.columns
            return quantize_values(
                values,
                shape,
                stored.dtype,
                spec,
                layer=stored.name,
                layer_shape=stored.shape,
                first_value=first,
            )
        region = region_of(stored, step)
        load = self._assembler.scales(region) if step.needs == "scales" else self._assembler.quantized(region)
        # a whole layer may have several dimensions of rows; as a matrix it has one
        return replace(_now(load), shape=shape, row_dims=1)

    @property
    def _assembler(self) -> Assembler:
        return Assembler(self.dataset, 1, 0, verify=True)

    def _values(self, layer: LayerExport, step: Step) -> np.ndarray:
        """Returns the rows' values in the source's dtype, as uint8."""
        first, stop = step.row_start * layer.columns, step.row_stop * layer.columns
        if self.source is None or self.source_layers is None:
            return self.dataset.read_values(layer.layer, first, stop)
        return self.source.read([(self.source_layers[layer.layer], first, stop)])[0]


def as_tensor_parts(step: Step, packed: Packed) -> TensorParts:
    """Yields the parts and removes them from `packed`, so that none is held when the next is requested."""
    for tensor in step.tensors:
        yield tensor, packed.pop(0)


def _runs_of(layer: LayerExport, tensor: int, rows: QuantizedTensor) -> Iterator[QuantizedTensor]:
    """Yields the rows in runs, each of which becomes one part of the tensor."""
    made, (rows_now, _) = layer.tensors[tensor], rows.matrix_shape
    nbytes = made.nbytes * rows_now // max(layer.rows, 1)
    if made.needs == "nothing" or nbytes <= _PART_NBYTES:
        yield rows
        return
    count, multiple = -(-nbytes // _PART_NBYTES), layer.packer.row_multiple
    at_once = -(-rows_now // count // multiple) * multiple
    for start in range(0, rows_now, at_once):
        yield rows.rows(start, min(start + at_once, rows_now))


def _first_from(room: Room, take: Allocate) -> Allocate:
    """Returns an allocator that first gives the available room, once, since a second piece would overlap it, and only
    if it is aligned for values of any dtype; otherwise memory from `take`."""
    unused = [room]

    def allocate(nbytes: int) -> np.ndarray:
        place = unused.pop()(nbytes) if unused else None
        return take(nbytes) if place is None or place.ctypes.data % _ALIGNMENT else place

    return allocate


def _now(load: Load[QuantizedTensor]) -> QuantizedTensor:
    """Runs a load in this thread, which is already one of those that read ahead."""
    lanes, result = load.begin()
    for lane in lanes:
        lane()
    return result()
