"""A minimal export format with all kinds of tensors: codes, scales alone, and values that only depend on a shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.export.format import ExportDraft, Model, OutputFiles
from arrowquant_dist.export.safetensors import safetensors_files
from arrowquant_dist.export.tensors import LayerExport, OutputTensor
from arrowquant_dist.tensor import QuantizedTensor, row_nbytes


@dataclass(frozen=True, slots=True)
class CodesAndScales:
    """Packs symmetric int8, int4 and int2 rows with a scale per row."""

    quant_type: str
    shape: tuple[int, int]
    row_multiple: int = 1

    def tensors(self, name: str, _shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        rows, columns = self.shape
        width = row_nbytes(self.quant_type, columns, "float32")
        return (
            OutputTensor(f"{name}.shape", "I64", (2,), 16, "nothing"),
            OutputTensor(f"{name}.codes", "U8", (rows, width), rows * width),
            OutputTensor(f"{name}.scales", "F32", (rows, 1), 4 * rows, "scales"),
        )

    def pack(self, tensor: int, rows: QuantizedTensor, _take: Allocate = fresh) -> np.ndarray:
        if tensor == 0:
            return np.array(self.shape, "<i8").view(np.uint8)
        return (rows.codes if tensor == 1 else rows.scales).reshape(-1).view(np.uint8)


@dataclass(frozen=True, slots=True)
class CodesFormat:
    """The format. spec: how every matrix is quantized anew; None: codes as they are. Other layers are left out."""

    quant_type: str
    spec: QuantSpec | None = None
    row_multiple: int = 1
    name: ClassVar[str] = "safetensors"

    def draft(self, model: Model) -> ExportDraft:
        layers = []
        for name, stored in model.names.items():
            if len(stored.shape) == 2:
                packer = CodesAndScales(self.quant_type, (stored.rows, stored.columns), self.row_multiple)
                layers.append(LayerExport(name, stored.name, stored.shape, 0, stored.rows, packer, self.spec))
        return ExportDraft(tuple(layers), notes=("vectors are left out",))

    def files(self, model: Model, draft: ExportDraft, mark: str, max_file_nbytes: int) -> OutputFiles:
        return safetensors_files(model, draft, mark, max_file_nbytes)
