"""Integers stored with the layer's rows as columns, as GPTQ and AWQ do: how the layouts of these formats differ.

The layer [outputs, inputs] is stored as words [… inputs, … outputs], zeros [groups, … outputs] and scales [groups,
outputs]: an output takes some bits of each row of all three.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.encodings.encoding import Encoding, Stored
from arrowquant_dist.encodings.place import Place, present
from arrowquant_dist.encodings.rows import Codes

RUN = 32  # outputs whose fields fill whole words
_WORD_NBYTES = 4


class TurnedLayout(Encoding):
    """The layout of a format's words and zeros, which each format defines."""

    __slots__ = ()

    middle: ClassVar[int]  # the middle of the range of the codes that `turned` returns, and of zero points
    group: int  # number of inputs that share a scale
    scales: Place
    zeros: Place

    @property
    def groups(self) -> Place | None:
        """Place of the group of each input, int32 [inputs]; None if groups are runs of inputs."""
        return None

    @property
    def places(self) -> tuple[Place, ...]:
        return present(self.scales, self.zeros, self.groups)

    @property
    @abstractmethod
    def zero_bits(self) -> int:
        """Bits of an output in each row of `zeros`."""

    @property
    @abstractmethod
    def codes(self) -> Codes:
        """The kind of codes that `turned` returns."""

    @abstractmethod
    def words(self, layer: Stored) -> PackedField:
        """The stored codes of `layer`."""

    @abstractmethod
    def turned(self, words: np.ndarray, inputs: int) -> np.ndarray:
        """Codes with a row per output: uint8 [outputs, bytes of a row]. words: uint32, the columns of a run of
        outputs."""

    @abstractmethod
    def zero_points(self, words: np.ndarray, outputs: int) -> np.ndarray:
        """What is subtracted from codes: float32 [outputs, groups]. words: uint32 [groups, words of some outputs]."""

    @abstractmethod
    def dense(self, codes: np.ndarray) -> np.ndarray:
        """Packs codes that `turned` returned: uint8 [outputs, bytes], `zero_bits` bits per code, in offset binary,
        dense from the low bits up."""


@dataclass(frozen=True, slots=True)
class PackedField:
    """A stored matrix; each output takes `bits` bits of each of its rows."""

    place: Place
    bits: int

    @property
    def row_nbytes(self) -> int:
        return self.place.shape[1] * self.place.itemsize

    def columns(self, outputs: range) -> range:
        """The bytes of a row that hold `outputs`, which begin with a run: whole words, but not beyond the row's end."""
        words = -(-outputs.stop * self.bits // (8 * _WORD_NBYTES))
        return range(outputs.start * self.bits // 8, min(words * _WORD_NBYTES, self.row_nbytes))


def fields_of(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpacks fields of `bits` bits, dense from the low bits up: uint32 [rows, words] → int32 [rows, count]."""
    stream = np.unpackbits(words.view(np.uint8), axis=1, count=count * bits, bitorder="little")
    powers = 1 << np.arange(bits, dtype=np.int32)
    fields: np.ndarray = stream.reshape(len(words), count, bits) @ powers
    return fields
