"""Unquantized values: the layer's bytes are the values, little-endian, in C order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import (
    Encoding,
    Source,
    SourceRange,
    Stored,
)
from arrowquant_dist.errors import InvalidCheckpoint, counted
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.storage.uris import redact


@dataclass(frozen=True, slots=True)
class Raw(Encoding):
    """`nbytes` bytes of values, from `offset` on, of the object at `uri`."""

    kind: ClassVar[str] = "raw"
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "plain values"

    def kept_spec(self, _layer: Stored, _source: Source) -> None:
        """None: there are no codes."""

    def slice(self, layer: Stored, start: int, stop: int) -> RawSlice:
        found = self.byte_range(layer, start, stop)
        return RawSlice((SourceRange(layer.uri, found.start, found.stop, DTYPES[layer.dtype].itemsize),))

    def byte_range(self, layer: Stored, start: int, stop: int) -> ByteRange:
        itemsize = DTYPES[layer.dtype].itemsize
        return ByteRange(layer.offset + start * itemsize, layer.offset + stop * itemsize)

    def check(self, layer: Stored, sizes: Mapping[str, int]) -> None:
        if layer.nbytes != layer.source_nbytes:
            shape = f"{list(layer.shape)} of {layer.dtype}"
            message = f"has {counted(layer.nbytes, 'byte')}, its shape {shape} needs {layer.source_nbytes}"
            raise InvalidCheckpoint(message, layer=layer.name, uri=redact(layer.uri))
        Encoding.check(self, layer, sizes)


RAW = Raw()


@dataclass(frozen=True, slots=True)
class RawSlice:
    """A range of the layer's bytes, which are the values."""

    ranges: tuple[SourceRange]
    decoded_nbytes: ClassVar[int] = 0
    beside_nbytes: ClassVar[int] = 0

    def values(self, found: Sequence[np.ndarray], _source: Source, _allocate: Allocate) -> np.ndarray:
        return found[0]
