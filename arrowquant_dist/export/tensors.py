"""What an export is made of: tensors of the output, and the packers that make them of a layer's rows.

A format (a module of this room) says, before anything is read, what becomes of each layer: a `LayerExport`, whose
packer says which tensors that makes, in which shapes. So every size and offset of the output is known before its first
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
AS_THE_SOURCE = QuantSpec("none", method="none")  # of a LayerExport: not quantized, the source's own values


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output.

    name: in full, as the reader of the format knows it. dtype: the format's own word, `BF16` or `I32` of safetensors,
    `Q4_0` of gguf. shape: as the format states it. needs: what its bytes follow from: whole rows of the layer, their
    scales and zero points alone (then a packer is given rows whose `codes` are empty), or nothing but its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    needs: Needs = "rows"


class Packer(Protocol):
    """Makes tensors of a layer's rows. A frozen dataclass of a few plain values: it travels to workers.

    row_multiple: rows come in runs of a multiple of it, all but a layer's last; 1 where rows stand alone.
    """

    @property
    def row_multiple(self) -> int: ...

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        """What a layer of this name and shape becomes, in the order in which it is written. name: in the output."""

    def pack(self, tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        """The bytes of `tensors(…)[tensor]` for a run of rows, uint8; those of all runs in order are the tensor's.

        rows: as V2 stores them, [rows, columns]; what blocks of several types have in common is their values, `none`.
        Of a tensor that needs scales alone, `codes` may be empty. Of one that needs nothing, whatever is at hand: its
        bytes follow from the packer itself, and all of them are returned at once. take: where large results get their
        memory from; what is returned may be the rows' own.
        """


@dataclass(frozen=True)
class LayerExport:
    """One layer of the output, and the rows of a layer of the dataset that it is made of. What is worked out of these
    is kept: a plan asks for it a dozen times.

    name: in the output (of one fused expert, the expert's). layer: the dataset's name of it. shape: of the output's
    layer. row_start, row_stop: its rows among the layer's, seen as [rows, columns]. spec: how its values are quantized
    anew before they are packed, or AS_THE_SOURCE; None: codes as they are. packer: what it becomes.
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
        """Whether a run of rows can be made without the others: not where they are quantized by one scale."""
        return self.spec is None or not self.spec.is_quantized or self.spec.quant_axis == 0
