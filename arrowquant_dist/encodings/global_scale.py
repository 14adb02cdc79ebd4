"""A second level of scales: one value for a whole tensor, or for each matrix of a stack, that all its scales share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.encodings.encoding import SourceRange
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.tensor.source import as_float32

FACTOR_ROW_NBYTES = 24  # of a row of scales: which value it takes, int64, and what that is computed of


@dataclass(frozen=True, slots=True)
class GlobalScale:
    """place: of the values: one, or as many as divide the rows of scales evenly, in their order. scale_rows: counted
    over all matrices. combine: of a scale and its value, numpy's multiply or divide.

    It is done in float32, as the libraries that write such scales do it.
    """

    place: Place
    scale_rows: int
    combine: np.ufunc

    @classmethod
    def of(cls, factor: Place | None, divisor: Place | None, scale_rows: int) -> GlobalScale | None:
        """None where there is neither."""
        if factor is not None:
            return cls(factor, scale_rows, np.multiply)
        return cls(divisor, scale_rows, np.divide) if divisor is not None else None

    @property
    def source_range(self) -> SourceRange:
        """All values: few, even of a stack of a thousand experts."""
        place = self.place
        return SourceRange(place.uri, place.offset, place.offset + place.nbytes, place.itemsize)

    def applied(self, scales: np.ndarray, found: np.ndarray, rows: range) -> tuple[np.ndarray, float]:
        """scales: float32 [rows, columns], those of `rows`. found: uint8, the bytes of `source_range`.

        Returns a new array, and the smallest of the values that these rows have.
        """
        values = as_float32(found, self.place.dtype)
        of_rows = values[np.arange(rows.start, rows.stop) // (self.scale_rows // values.size)][:, None]
        with np.errstate(
            divide="ignore", invalid="ignore", over="ignore"
        ):  # what it makes is checked as values are
            made: np.ndarray = self.combine(scales, of_rows)
        return made, float(of_rows.min())
