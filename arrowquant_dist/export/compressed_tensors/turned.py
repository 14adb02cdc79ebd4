"""Packs an expert whose rows are inputs as the Linear layers that readers have in its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.export.tensors import OutputTensor
from arrowquant_dist.tensor import QuantizedTensor

_VALUES_AT_ONCE = 1 << 16  # decoded before they are transposed: they stay in the cache


@dataclass(frozen=True, slots=True)
class TurnedValues:
    """Packs all rows of an expert, [in, modules · out], as a weight [out, in] for each module.

    dtype: the source's. modules: names that replace the last part of the expert's name, such as `gate_proj`. inputs:
    number of rows.
    """

    dtype: str
    modules: tuple[str, ...]
    inputs: int

    @property
    def row_multiple(self) -> int:
        return self.inputs

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        """See Packer.tensors. name, shape: those of the expert's part of the stored tensor, such as
        `experts.0.gate_up_proj`, [in, modules · out]."""
        expert = name.rpartition(".")[0]
        dtype, outputs = DTYPES[self.dtype], shape[1] // len(self.modules)
        nbytes = outputs * self.inputs * dtype.itemsize
        return tuple(
            OutputTensor(f"{expert}.{module}.weight", dtype.safetensors, (outputs, self.inputs), nbytes)
            for module in self.modules
        )

    def pack(self, tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        """See Packer.pack."""
        count, columns = rows.matrix_shape
        outputs = columns // len(self.modules)
        own = range(tensor * outputs, (tensor + 1) * outputs)
        bits = np.dtype(DTYPES[self.dtype].bits)
        turned = take(outputs * count * bits.itemsize).view(bits).reshape(outputs, count)
        step = max(1, _VALUES_AT_ONCE // max(outputs, 1))
        for start in range(0, count, step):
            stop = min(start + step, count)
            values = np.empty((stop - start, outputs), turned.dtype)
            rows.rows(start, stop).values_into(values.reshape(-1).view(np.uint8), self.dtype, own)
            turned[:, start:stop] = values.T
        return turned.reshape(-1).view(np.uint8)
