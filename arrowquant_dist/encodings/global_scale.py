"""A second level of scales: one value for a whole tensor or for each matrix of a stack, shared by all its scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.encodings.encoding import SourceRange
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.tensor.source import as_float32

FACTOR_ROW_NBYTES = 24  # for each row of scales: the int64 index of its value, and intermediate arrays


@dataclass(frozen=True, slots=True)
class GlobalScale:
    """place: where the values are: one, or several, in order, that divide the rows of scales evenly. scale_rows: number
    of rows of scales, counted over all matrices. combine: how a scale and its value are combined: numpy's multiply or
    divide.

    They are combined in float32, as by the libraries that write such scales.
    """

    place: Place
    scale_rows: int
    combine: np.ufunc

    @classmethod
    def of(cls, factor: Place | None, divisor: Place | None, scale_rows: int) -> GlobalScale | None:
        """None if there is neither a factor nor a divisor."""
        if factor is not None:
            return cls(factor, scale_rows, np.multiply)
        return cls(divisor, scale_rows, np.divide) if divisor is not None else None

    @property
    def source_range(self) -> SourceRange:
        """The byte range of all values, which are few even for a stack of a thousand experts."""
        place = self.place
        return SourceRange(place.uri, place.offset, place.offset + place.nbytes, place.itemsize)

    def applied(self, scales: np.ndarray, found: np.ndarray, rows: range) -> tuple[np.ndarray, float]:
        """(scales combined with their values, smallest of these rows' values); the scales are a new array.

        scales: float32 [rows, columns], those of `rows`. found: uint8, the bytes of `source_range`.
        """
        values = as_float32(found, self.place.dtype)
        of_rows = values[np.arange(rows.start, rows.stop) // (self.scale_rows // values.size)][:, None]
        with np.errstate(
            divide="ignore", invalid="ignore", over="ignore"
        ):  # NaN and inf that result are found when values are checked
            made: np.ndarray = self.combine(scales, of_rows)
        return made, float(of_rows.min())
