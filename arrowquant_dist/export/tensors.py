"""The parts of an export: tensors of the output, and the packers that make them from a layer's rows.

A format (a module of this package) decides, before anything is read, what becomes of each layer: a `LayerExport`, whose
packer tells which tensors that makes, in which shapes. So every size and offset of the output is known before its first
byte, and a file is written front to back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.tensor import QuantizedTensor

Needs = Literal["rows", "scales", "nothing"]
AS_THE_SOURCE = QuantSpec("none", method="none")  # in a LayerExport: not quantized, the source's own values


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output.

    name: full name, as readers of the format know it. dtype: the format's own name, such as `BF16` or `I32` in
    safetensors, `Q4_0` in gguf. shape: as the format gives it. nbytes: size in bytes. needs: what its bytes depend on:
    whole rows of the layer, only their scales and zero points (then a packer may get rows with empty `codes`), or
    nothing but the packer.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    needs: Needs = "rows"


class Packer(Protocol):
    """Makes tensors from a layer's rows. A frozen dataclass of a few plain values, since it is sent to workers.

    row_multiple: all runs of rows but a layer's last have a multiple of this many; 1 if rows are independent.
    """

    @property
    def row_multiple(self) -> int: ...

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        """Returns what a layer becomes, in the order of writing. name: in the output. shape: the layer's."""

    def pack(self, tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        """Returns the bytes of `tensors(…)[tensor]` for a run of rows, uint8; those of all runs in order are the
        tensor.

        rows: as V2 stores them, [rows, columns]; blocks of different types are given as values, `none`. For a tensor
        that needs only scales, `codes` may be empty. For one that needs nothing, they are arbitrary: its bytes follow
        from the packer itself, and all of them are returned at once. take: allocates memory for large results; the
        result may also be the rows' own memory.
        """


@dataclass(frozen=True)
class LayerExport:
    """One layer of the output, and the rows of the dataset's layer that it is made from. Derived values are cached,
    since a plan asks for them a dozen times.

    name: in the output (for a fused expert, that expert's). layer: the dataset's name. shape: that of the output's
    layer. row_start, row_stop: its rows among the layer's, seen as [rows, columns]. packer: what it becomes. spec: how
    its values are quantized anew before they are packed, or AS_THE_SOURCE; None for codes as they are.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    row_start: int
    row_stop: int
    packer: Packer
    spec: QuantSpec | None = None

    @cached_property
    def tensors(self) -> tuple[OutputTensor, ...]:
        return self.packer.tensors(self.name, self.shape)

    @property
    def rows(self) -> int:
        return self.row_stop - self.row_start

    @property
    def columns(self) -> int:
        return math.prod(self.shape) // self.rows if self.rows else 0

    @property
    def has_rows_alone(self) -> bool:
        """Whether a run of rows can be made without the others, that is, unless they are quantized with one scale."""
        return self.spec is None or not self.spec.is_quantized or self.spec.quant_axis == 0
