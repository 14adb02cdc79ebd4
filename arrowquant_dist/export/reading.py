"""What a step reads and packs: at once, or as a load that takes its memory from a budget (dataset/prefetch.py)."""

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

Packed = list[np.ndarray]  # of each tensor of a step, its next bytes: uint8
TensorParts = Iterator[tuple[int, np.ndarray]]  # the same with tensors' indices, perhaps several of one
Room = Callable[[int], np.ndarray | None]  # nbytes → where the next part may be made (ObjectWriter.room)
_NONE = np.empty(0, np.float32)
_ALIGNMENT = 8  # of values of any dtype
_ANNOUNCED = 16  # steps that are on their way into the page cache before they are read: a third of a second
_PART_NBYTES = 6 << 20  # of a tensor: three quarters of a piece of a direct write


@dataclass(frozen=True, slots=True)
class StepReader:
    """Makes the loads of a worker. take: where what is packed gets its memory from. source, source_layers: what layers
    are quantized anew from, where that is not the dataset; {name: layer}.
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
        """What each step of the file packs, made as it is asked for, in the thread that asks. room: of the file.

        Where the disk has to be asked, it is asked before: a read waits behind all that is being written there.
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
            if ranges is not None and ranges.data.stored_nbytes:  # not of layers without values
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
        """Of the first tensor, parts for each row block, whose codes are let go of before the next one is read and need
        not be copied to lie side by side. The others are made of what else the blocks have."""
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
        """Whether one tensor alone is made of codes, and its row blocks are runs that the packer takes."""
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
        except CorruptWeights as error:  # of a packer, which does not know whose rows they are
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
        # a whole layer may have several dimensions of rows, its rows as a matrix have one
        return replace(_now(load), shape=shape, row_dims=1)

    @property
    def _assembler(self) -> Assembler:
        return Assembler(self.dataset, 1, 0, verify=True)

    def _values(self, layer: LayerExport, step: Step) -> np.ndarray:
        """uint8: the rows' values in the source's dtype."""
        first, stop = step.row_start * layer.columns, step.row_stop * layer.columns
        if self.source is None or self.source_layers is None:
            return self.dataset.read_values(layer.layer, first, stop)
        return self.source.read([(self.source_layers[layer.layer], first, stop)])[0]


def as_tensor_parts(step: Step, packed: Packed) -> TensorParts:
    """Takes them out of `packed`, so that none is held when the next one is asked for."""
    for tensor in step.tensors:
        yield tensor, packed.pop(0)


def _runs_of(layer: LayerExport, tensor: int, rows: QuantizedTensor) -> Iterator[QuantizedTensor]:
    """The rows in runs that become a part of the tensor each."""
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
    """Gives what there is room for once, since what is taken later would lie over it, and where values of any dtype may
    lie; else what `take` gives."""
    unused = [room]

    def allocate(nbytes: int) -> np.ndarray:
        place = unused.pop()(nbytes) if unused else None
        return take(nbytes) if place is None or place.ctypes.data % _ALIGNMENT else place

    return allocate


def _now(load: Load[QuantizedTensor]) -> QuantizedTensor:
    """In this thread, which is one of those that read ahead already."""
    lanes, result = load.begin()
    for lane in lanes:
        lane()
    return result()
