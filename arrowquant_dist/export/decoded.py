"""The format `safetensors`: every layer decoded, under the source's names and in its dtypes.

Layers that the dataset keeps byte for byte have the same bytes in the output; layers that it stores as fp16 have values
of the source's dtype again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.export.format import ExportDraft, Model, OutputFiles
from arrowquant_dist.export.safetensors import safetensors_files
from arrowquant_dist.export.tensors import LayerExport, OutputTensor
from arrowquant_dist.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class DecodedValues:
    """Packs rows as their decoded values. dtype: the source's dtype."""

    dtype: str
    row_multiple: ClassVar[int] = 1

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        dtype = DTYPES[self.dtype]
        return (OutputTensor(name, dtype.safetensors, shape, math.prod(shape) * dtype.itemsize),)

    def pack(self, _tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        return rows.bytes_as(self.dtype, take)


@dataclass(frozen=True, slots=True)
class DecodedSafetensors:
    name: ClassVar[str] = "safetensors"

    def draft(self, model: Model) -> ExportDraft:
        layers = tuple(
            LayerExport(name, stored.name, stored.shape, 0, stored.rows, DecodedValues(stored.dtype))
            for name, stored in model.names.items()
        )
        return ExportDraft(layers)

    def files(self, model: Model, draft: ExportDraft, mark: str, max_file_nbytes: int) -> OutputFiles:
        return safetensors_files(model, draft, mark, max_file_nbytes)
