"""A dataset's codes as the pairs that a model's `load_weights` takes: the contents of an export as compressed-tensors.

What becomes of each layer is drafted by the export's own format and packed by its packers, for the rows that a
parameter takes. Whether scales and zero points can be written is not checked for all of them in advance, since each
process would have to read them all: it is checked for the rows that are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from arrowquant_dist.config import BITS, RunConfig
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig, ModelMismatch
from arrowquant_dist.export.compressed_tensors.draft import CompressedTensors
from arrowquant_dist.export.compressed_tensors.packers import Int8Weight, PackedWeight, ScaleDtype
from arrowquant_dist.export.compressed_tensors.stored import (
    StoredScales,
    is_symmetric,
    read_scales,
    scales_of,
)
from arrowquant_dist.export.compressed_tensors.turned import TurnedValues
from arrowquant_dist.export.options import ExportOptions
from arrowquant_dist.export.run import open_model
from arrowquant_dist.export.tensors import LayerExport, OutputTensor
from arrowquant_dist.loader.opened import OpenDataset
from arrowquant_dist.loader.tensors import as_tensor
from arrowquant_dist.plugins.vllm.ahead import Ahead
from arrowquant_dist.plugins.vllm.lazy import Box, LazyTensor
from arrowquant_dist.plugins.vllm.settings import SERVE_DECODED, LoadSettings
from arrowquant_dist.plugins.vllm.weights import NamedTensors
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.tensor import QuantizedTensor

_DTYPES = {dtype.safetensors: dtype for dtype in DTYPES.values()}
_NO_BYTES, _NO_NUMBERS = np.empty(0, np.uint8), np.empty(0, np.float32)
_COMPARED = ("config_groups", "format", "ignore")  # in a quantization_config: these decide how codes are read


@dataclass(frozen=True, slots=True)
class ServedCodes(CompressedTensors):
    """The format of the export, except that scales are assumed to be writable until they are read."""

    otherwise: ClassVar[str] = SERVE_DECODED

    def stored_scales(
        self, dataset: Dataset, layers: Sequence[StoredLayer], dtypes: Mapping[str, ScaleDtype]
    ) -> Mapping[str, StoredScales]:
        del dtypes
        symmetric = {layer.name: is_symmetric(layer) for layer in layers}
        if None in symmetric.values():
            return read_scales(dataset, layers)
        # vLLM keeps scales of W8A8 in float32, and others in the model's dtype.
        held: frozenset[ScaleDtype] = frozenset(("F32",) if self.activations else ("F32", "BF16", "F16"))
        return {
            name: StoredScales(bool(found), whole=True, held_by=held) for name, found in symmetric.items()
        }


@contextmanager
def coded_weights(
    settings: LoadSettings, opened: OpenDataset, config: Mapping[str, Any], waiting_nbytes: int
) -> Iterator[NamedTensors]:
    """Yields what an export contains, in its order. config: the model's `quantization_config`, which has to be the
    export's.

    waiting_nbytes: most bytes that were read ahead and wait to be taken.
    """
    exports = served_layers(settings, config)
    reader = CodesReader(opened, {export.name: export for export in exports})
    shapes = {export.name: (export.rows, export.columns) for export in exports}
    with Ahead(
        shapes, reader.read, reader.nbytes, workers=opened.workers, limit_nbytes=waiting_nbytes
    ) as ahead:
        rows = TakenRows(ahead)
        yield (
            (tensor.name, LazyTensor.of(CodesTensor(rows, export, index, tensor, waiting_nbytes)))
            for export in exports
            for index, tensor in enumerate(export.tensors)
        )


def served_layers(settings: LoadSettings, config: Mapping[str, Any]) -> tuple[LayerExport, ...]:
    """Returns what becomes of each layer. Raises ModelMismatch if the model's settings are not the export's."""
    groups = config.get("config_groups", {}).values()
    activations = any(group.get("input_activations") for group in groups)
    run = RunConfig(storage_options=settings.storage_options)
    model = open_model(settings.target, ExportOptions(format="compressed-tensors"), run)
    draft = ServedCodes(activations=activations).draft(model)
    ours = parse_json(draft.changed["config.json"]).get("quantization_config", {})
    if any(ours.get(key) != config.get(key) for key in _COMPARED):
        message = (
            "the quantization_config of the model that vLLM was given is not this dataset's; make the folder again: "
            "arrowquant vllm TARGET FOLDER"
        )
        raise ModelMismatch(message, uri=model.dataset.uri)
    return draft.layers


@dataclass(frozen=True, slots=True)
class CodesReader:
    """Reads rows of the output's layers, as [rows, columns] and as they are stored."""

    opened: OpenDataset
    exports: Mapping[str, LayerExport]

    def read(self, name: str, box: Box) -> QuantizedTensor:
        """Reads rows of a layer of the output, all columns. Raises InvalidConfig for scales that it cannot write."""
        export = self.exports[name]
        stored = self.opened.dataset.layers[export.layer]
        rows = range(export.row_start + box.rows.start, export.row_start + box.rows.stop)
        region = Region(stored, (rows,), range(stored.columns), (len(rows), stored.columns))
        found = load_now(self.opened.assembler.quantized(region), self.opened.budget)
        _check_scales(export, found)
        # a whole layer may have several dimensions of rows; as a matrix it has one
        return replace(found, shape=region.shape, row_dims=1)

    def nbytes(self, name: str, box: Box) -> int:
        export = self.exports[name]
        stored = self.opened.dataset.layers[export.layer]
        nbytes = sum(block.header.data_nbytes + 8 * block.header.scale_count for block in stored.blocks)
        return nbytes * len(box.rows) // max(stored.rows, 1)


class TakenRows:
    """Rows that parameters take. Keeps the scales and zero points of the latest layer: they were read with its codes,
    and its next tensors are made from them."""

    def __init__(self, ahead: Ahead[QuantizedTensor]) -> None:
        self._ahead = ahead
        self._of = ""
        self._kept: dict[int, QuantizedTensor] = {}  # by first row; without codes

    def take(self, export: LayerExport, rows: range) -> QuantizedTensor:
        found = self._ahead.take(export.name, Box(rows, range(export.columns)))
        if self._of != export.name:
            self._of, self._kept = export.name, {}
        self._kept[rows.start] = replace(found, codes=_NO_BYTES)
        return found

    def scales(self, export: LayerExport, rows: range) -> QuantizedTensor:
        """Returns the rows without codes if they have been taken already, otherwise with codes."""
        for start, kept in self._kept.items() if self._of == export.name else ():
            if start <= rows.start and rows.stop <= start + kept.matrix_shape[0]:
                return kept.rows(rows.start - start, rows.stop - start)
        return self.take(export, rows)


@dataclass(frozen=True, slots=True)
class CodesTensor:
    """One tensor of the output. taken: the rows it is made from. export: its layer. index: its number there. tensor:
    its description. most_nbytes: bytes to request at a time."""

    taken: TakenRows
    export: LayerExport
    index: int
    tensor: OutputTensor
    most_nbytes: int

    @property
    def name(self) -> str:
        return self.export.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, _DTYPES[self.tensor.dtype].name)
        return dtype

    def read(self, box: Box) -> torch.Tensor:
        if self.tensor.needs == "nothing":
            return self._packed(_no_rows(self.export), box, 0)
        if isinstance(self.export.packer, TurnedValues):
            return self._packed(self.taken.take(self.export, range(self.export.rows)), box, 0)
        per_row = self._rows_per_row
        multiple = self.export.packer.row_multiple
        start = box.rows.start * per_row // multiple * multiple
        stop = min(-(-box.rows.stop * per_row // multiple) * multiple, self.export.rows)
        take = self.taken.scales if self.tensor.needs == "scales" else self.taken.take
        return self._packed(take(self.export, range(start, stop)), box, start // per_row)

    @property
    def _rows_per_row(self) -> int:
        """The number of the layer's rows that one row of the tensor is made from."""
        first = self.shape[0] if self.shape else 1
        if first == self.export.rows:
            return 1
        # packed zero points; otherwise the layer's own first dimension, experts
        return self.export.packer.row_multiple if self.tensor.needs == "scales" else self.export.rows // first

    def _packed(self, rows: QuantizedTensor, box: Box, first: int) -> torch.Tensor:
        """Returns the box of the packed tensor. first: the tensor's row at which `rows` begin."""
        dtype = _DTYPES[self.tensor.dtype]
        values = as_tensor(self.export.packer.pack(self.index, rows).view(dtype.bits), dtype.name)
        columns = self.shape[1] if len(self.shape) > 1 else 1
        whole = values.reshape(-1, columns, math.prod(self.shape[2:]))
        return whole[
            box.rows.start - first : box.rows.stop - first, box.columns.start : box.columns.stop
        ].clone()


def _no_rows(export: LayerExport) -> QuantizedTensor:
    return QuantizedTensor((0, export.columns), "float32", "none", _NO_BYTES, _NO_NUMBERS, _NO_NUMBERS, -1, 0)


def _check_scales(export: LayerExport, rows: QuantizedTensor) -> None:
    """Checks what the export checks before it begins, for the rows at hand."""
    packer = export.packer
    if not isinstance(packer, PackedWeight | Int8Weight):
        return
    found = scales_of(rows.scales, rows.zero_points, BITS[rows.quant_type])
    if packer.scale_dtype in found.held_by and found.whole:
        return
    problem = (
        "zero points are not whole numbers within the codes' range"
        if not found.whole
        else (f"scales are not exact in {packer.scale_dtype}, so vLLM would round them")
    )
    message = f"{problem}; quantize with scale_dtype: bfloat16 and integer_zero_points: true, or serve decoded values"
    raise InvalidConfig(message, layer=export.layer)
