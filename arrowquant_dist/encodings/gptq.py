"""GPTQ's integers: each output is a column of words, which are packed along the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.encodings.encoding import Stored
from arrowquant_dist.encodings.packed import words_of
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.rows import Codes
from arrowquant_dist.encodings.turned import TurnedInts
from arrowquant_dist.encodings.turned_layout import PackedField, fields_of
from arrowquant_dist.kernels.code_kinds import PACKED

PLAIN, LESS_ONE, WORDS_LESS_ONE = "plain", "less one", "words less one"
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Gptq(TurnedInts):
    """Codes, dense from the low bits up, in int32 words [⌈inputs · bits / 32⌉, outputs].

    bits: bits of a code, 1 to 8. group: number of inputs that share a scale, unless `g_idx` says otherwise. scales:
    [groups, outputs]. zeros: int32 [groups, ⌈outputs · bits / 32⌉]. stored_zeros: how `zeros` relates to the zero
    points: equal (PLAIN, checkpoint format gptq_v2); each less one, cut to its bits (LESS_ONE, gptq); or less one in
    each field by one subtraction of whole words, in which a zero of 0 borrows from its neighbour (WORDS_LESS_ONE, gptq
    by GPTQModel). g_idx: int32 [inputs], the group of each input; None if groups are runs of inputs.
    """

    bits: int
    group: int
    scales: Place
    zeros: Place
    stored_zeros: str
    g_idx: Place | None
    kind: ClassVar[str] = "gptq"
    middle: ClassVar[int] = 0  # of signed codes

    @property
    def label(self) -> str:
        return f"GPTQ's {self.bits}-bit codes and scales"

    @property
    def groups(self) -> Place | None:
        return self.g_idx

    @property
    def zero_bits(self) -> int:
        return self.bits

    @property
    def codes(self) -> Codes:
        return Codes(PACKED, self.bits)

    def words(self, layer: Stored) -> PackedField:
        outputs, inputs = layer.shape
        return PackedField(
            Place(layer.uri, layer.offset, "int32", (words_of(inputs, self.bits), outputs)), _WORD_BITS
        )

    def turned(self, words: np.ndarray, _inputs: int) -> np.ndarray:
        return np.ascontiguousarray(words.T).view(np.uint8)

    def dense(self, codes: np.ndarray) -> np.ndarray:
        return codes

    def zero_points(self, words: np.ndarray, outputs: int) -> np.ndarray:
        if self.stored_zeros == WORDS_LESS_ONE:
            ones = sum(1 << at for at in range(0, _WORD_BITS, self.bits))
            words = words + np.uint32(ones)
        zeros = fields_of(words, self.bits, outputs)
        if self.stored_zeros == LESS_ONE:
            zeros = (zeros + 1) & ((1 << self.bits) - 1)
        # Kernels take signed codes, which are half the range below the stored ones, so zero points are moved as well.
        return (zeros - (1 << (self.bits - 1))).astype(np.float32).T
