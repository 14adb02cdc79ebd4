"""AWQ's integers as AutoAWQ's kernels take them: for GEMM a word holds eight outputs, for GEMV eight inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.config.spec import NotKept, QuantSpec
from arrowquant_dist.encodings.encoding import Encoding, Source, Stored
from arrowquant_dist.encodings.kept import KeptRowSlice, are_middle, grid_spec
from arrowquant_dist.encodings.packed import words_of
from arrowquant_dist.encodings.place import Place, present
from arrowquant_dist.encodings.rows import Codes, Grid, RowSlice, values_of
from arrowquant_dist.encodings.turned import TurnedInts
from arrowquant_dist.encodings.turned_layout import PackedField
from arrowquant_dist.encodings.zero_points import NibbleZeros
from arrowquant_dist.kernels.code_kinds import INT8, PACKED

AWQ_BITS = 4
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # for each output of a word, which four bits it has, from the low ones
_SHIFTS = np.array(_ORDER, np.uint32) * np.uint32(AWQ_BITS)
_MASK = (1 << AWQ_BITS) - 1


@dataclass(frozen=True, slots=True)
class Awq(TurnedInts):
    """4-bit codes in int32 words [inputs, outputs / 8], outputs 0, 2, 4, 6, 1, 3, 5, 7 of a word from the low bits up.

    group: number of inputs that share a scale. scales: [groups, outputs]. zeros: int32 [groups, outputs / 8], packed
    like the codes.
    """

    group: int
    scales: Place
    zeros: Place
    kind: ClassVar[str] = "awq"
    middle: ClassVar[int] = 1 << (AWQ_BITS - 1)

    @property
    def label(self) -> str:
        return "AWQ's 4-bit codes and scales"

    @property
    def zero_bits(self) -> int:
        return AWQ_BITS

    @property
    def codes(self) -> Codes:
        return Codes(INT8, 8)

    def words(self, layer: Stored) -> PackedField:
        outputs, inputs = layer.shape
        return PackedField(
            Place(layer.uri, layer.offset, "int32", (inputs, words_of(outputs, AWQ_BITS))), AWQ_BITS
        )

    def turned(self, words: np.ndarray, inputs: int) -> np.ndarray:
        from arrowquant_dist.kernels.sources import turn_fields

        codes = np.empty((words.shape[1] * len(_ORDER), inputs), np.uint8)
        turn_fields(words, _SHIFTS, _MASK, codes)
        return codes

    def dense(self, codes: np.ndarray) -> np.ndarray:
        packed: np.ndarray = codes[:, 0::2].copy()
        packed[:, : codes.shape[1] // 2] |= codes[:, 1::2] << AWQ_BITS
        return packed

    def zero_points(self, words: np.ndarray, _outputs: int) -> np.ndarray:
        zeros: np.ndarray = (words[:, :, None] >> _SHIFTS) & np.uint32(_MASK)
        return zeros.reshape(len(words), -1).astype(np.float32).T


@dataclass(frozen=True, slots=True)
class AwqRows(Encoding):
    """4-bit codes in int32 words [outputs, inputs / 8], from the low bits up.

    group: number of inputs that share a scale. scales: [outputs, groups or more], the rest of a row is padding. zeros:
    int32 [outputs, scales per row / 8], packed like the codes."""

    group: int
    scales: Place
    zeros: Place
    kind: ClassVar[str] = "awq_rows"
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "AWQ's 4-bit codes and scales"

    @property
    def places(self) -> tuple[Place, ...]:
        return present(self.scales, self.zeros)

    def slice(self, layer: Stored, start: int, stop: int) -> RowSlice:
        outputs, inputs = layer.shape
        grid = Grid(
            rows=outputs,
            columns=inputs,
            row_nbytes=inputs * AWQ_BITS // 8,
            block=(1, self.group),
            scale_rows=outputs,
            scale_columns=self.scales.shape[1],
            single_scale=False,
        )
        return RowSlice(
            layer, start, stop, Codes(PACKED, AWQ_BITS), grid, self.scales, NibbleZeros(self.zeros)
        )

    def kept_spec(self, layer: Stored, source: Source) -> QuantSpec | NotKept:
        outputs, inputs = layer.shape
        groups = -(-inputs // self.group)
        symmetric = are_middle(NibbleZeros(self.zeros), outputs, self.scales.shape[1], groups, source)
        return grid_spec(self.slice(layer, 0, 0), AWQ_BITS, source, symmetric=symmetric)

    def kept_slice(self, layer: Stored, rows: range, spec: QuantSpec) -> KeptRowSlice:
        return KeptRowSlice.of(self.slice(layer, *values_of(layer, rows)), spec)
