"""Integers whose stored words have the layer's rows as their columns, as GPTQ and AWQ store them: what differs.

The layer [outputs, inputs] is stored as words [… inputs, … outputs], zeros [groups, … outputs] and scales [groups,
outputs]: an output is some bits of each row of all three.
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
    """Each format says how its words and zeros are laid out."""

    __slots__ = ()

    middle: ClassVar[int]  # of the range of codes as `turned` gives them, and of zero points
    group: int  # inputs that share a scale
    scales: Place
    zeros: Place

    @property
    def groups(self) -> Place | None:
        """Of int32 [inputs]: the group of each input. None where groups are runs of inputs."""
        return None

    @property
    def places(self) -> tuple[Place, ...]:
        return present(self.scales, self.zeros, self.groups)

    @property
    @abstractmethod
    def zero_bits(self) -> int:
        """Of an output in each row of `zeros`."""

    @property
    @abstractmethod
    def codes(self) -> Codes:
        """What `turned` gives."""

    @abstractmethod
    def words(self, layer: Stored) -> PackedField:
        """The stored codes of `layer`."""

    @abstractmethod
    def turned(self, words: np.ndarray, inputs: int) -> np.ndarray:
        """words: uint32, the columns of a run of outputs. Returns codes: uint8 [outputs, bytes of a row]."""

    @abstractmethod
    def zero_points(self, words: np.ndarray, outputs: int) -> np.ndarray:
        """words: uint32 [groups, words of a run of outputs]. Returns float32 [outputs, groups], to take from codes."""

    @abstractmethod
    def dense(self, codes: np.ndarray) -> np.ndarray:
        """codes: as `turned` gives them. Returns uint8 [outputs, bytes]: `zero_bits` each, as offset binary, dense from
        the low bits up."""


@dataclass(frozen=True, slots=True)
class PackedField:
    """A stored matrix in whose rows each output has `bits` bits."""

    place: Place
    bits: int

    @property
    def row_nbytes(self) -> int:
        return self.place.shape[1] * self.place.itemsize

    def columns(self, outputs: range) -> range:
        """The bytes of a row that hold `outputs`, which begin with a run; whole words, as far as the row goes."""
        words = -(-outputs.stop * self.bits // (8 * _WORD_NBYTES))
        return range(outputs.start * self.bits // 8, min(words * _WORD_NBYTES, self.row_nbytes))


def fields_of(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Fields of `bits` bits, dense from the low bits up: words: uint32 [rows, words] → int32 [rows, count]."""
    stream = np.unpackbits(words.view(np.uint8), axis=1, count=count * bits, bitorder="little")
    powers = 1 << np.arange(bits, dtype=np.int32)
    fields: np.ndarray = stream.reshape(len(words), count, bits) @ powers
    return fields
