"""The place of a stored tensor that is needed to decode a layer, such as its scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

from arrowquant_dist.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class Place:
    """A stored tensor of `shape` and `dtype`, little-endian in C order, from `offset` on in the object at `uri`."""

    uri: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


def present(*places: Place | None) -> tuple[Place, ...]:
    """The places that are not None."""
    return tuple(place for place in places if place is not None)
