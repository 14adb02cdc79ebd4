"""Rows of a layer put together from the blocks that hold them, as loads that say what memory they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from arrowquant_dist.dataset.dataset import Dataset, Piece, pieces
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Lane, Load
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.tensor import QuantizedTensor

DIRECT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, stop) of a layer seen as [rows, columns], and the shape that they are given."""

    layer: StoredLayer
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def num_params(self) -> int:
        return (self.stop - self.start) * self.layer.columns


@dataclass(frozen=True, slots=True)
class Assembler:
    """Makes loads of at most `workers` lanes, fewer where their memory would pass `limit_nbytes`."""

    dataset: Dataset
    workers: int
    limit_nbytes: int
    verify: bool

    def values(self, rows: Rows, dtype: str) -> Load[np.ndarray]:
        """Decoded values: fresh memory [*rows.shape], numpy bits of `dtype`."""
        found = pieces(rows.layer, rows.start, rows.stop)
        columns = rows.layer.columns

        def begin() -> tuple[Sequence[Lane], Callable[[], np.ndarray]]:
            out = np.empty((rows.stop - rows.start, columns), DTYPES[dtype].bits)

            def fill(piece: Piece) -> None:
                first = piece.block.header.row_start + piece.start - rows.start
                place = out[first : first + piece.rows].reshape(-1)
                self._read(piece).values_into(place.view(np.uint8), dtype)

            return _lanes(fill, found, lanes), lambda: out.reshape(rows.shape)

        wide = 0 if dtype in DIRECT_DTYPES else 4  # others are decoded to float32 first
        costs = [self._read_nbytes(piece) + wide * piece.rows * columns for piece in found]
        result_nbytes = rows.num_params * DTYPES[dtype].itemsize
        lanes, extra = self._fit(costs, result_nbytes)
        return Load(rows.layer.name, result_nbytes + extra, result_nbytes, begin)

    def quantized(self, rows: Rows) -> Load[QuantizedTensor]:
        """Codes, scales and zero points as one tensor of `rows.shape`, in fresh memory."""
        found = pieces(rows.layer, rows.start, rows.stop)
        if rows.layer.quant_type == "mixed" or not found:
            return self._raw(rows)
        nbytes = [piece.rows * piece.block.header.row_nbytes for piece in found]
        offsets = np.cumsum([0, *nbytes])

        def begin() -> tuple[Sequence[Lane], Callable[[], QuantizedTensor]]:
            parts: dict[int, QuantizedTensor] = {}
            codes = np.empty(offsets[-1] if len(found) > 1 else 0, np.uint8)

            def fill(index: int) -> None:
                part = self._read(found[index])
                if len(found) > 1:
                    codes[offsets[index] : offsets[index + 1]] = part.codes
                    part = replace(part, codes=codes[:0])
                parts[index] = part

            return _lanes(fill, range(len(found)), lanes), lambda: _join(
                rows, codes, found, [parts[i] for i in range(len(found))]
            )

        numbers = sum(16 * piece.rows * max(1, piece.block.header.groups_per_row) for piece in found)
        result_nbytes = sum(nbytes) + numbers
        costs = [self._read_nbytes(piece) for piece in found]
        lanes, extra = self._fit(costs, result_nbytes)
        return Load(rows.layer.name, result_nbytes + extra, result_nbytes, begin)

    def _raw(self, rows: Rows) -> Load[QuantizedTensor]:
        """Decoded values as a tensor that is not quantized: what blocks of several types have in common."""
        dtype, row_dims = rows.layer.dtype, rows.layer.row_dims
        none = np.empty(0, np.float32)

        def wrap(values: np.ndarray) -> QuantizedTensor:
            codes = values.reshape(-1).view(np.uint8)
            return QuantizedTensor(rows.shape, dtype, "none", codes, none, none, -1, 0, row_dims)

        return self.values(rows, dtype).then(wrap)

    def _read(self, piece: Piece) -> QuantizedTensor:
        return self.dataset.read_piece(piece, verify=self.verify)

    def _read_nbytes(self, piece: Piece) -> int:
        return self.dataset.piece_nbytes(piece, verify=self.verify)

    def _fit(self, costs: Sequence[int], result_nbytes: int) -> tuple[int, int]:
        """How many lanes fit beside the result, at least 1, and the most memory that they take together."""
        for lanes in range(min(self.workers, len(costs)), 0, -1):
            extra = sum(max(costs[lane::lanes]) for lane in range(lanes))
            if lanes == 1 or result_nbytes + extra <= self.limit_nbytes:
                return lanes, extra
        return 1, 0


def _lanes(work: Callable[[Any], None], items: Sequence[Any], lanes: int) -> list[Lane]:
    """Lane i does items i, i + lanes, …, one after another."""

    def run(lane: int) -> None:
        for item in items[lane::lanes]:
            work(item)

    return [partial(run, lane) for lane in range(lanes)]


def _join(
    rows: Rows, codes: np.ndarray, found: Sequence[Piece], parts: Sequence[QuantizedTensor]
) -> QuantizedTensor:
    """One tensor of blocks that follow each other; `codes` has all of theirs, where there are several."""
    first = replace(parts[0], shape=rows.shape, row_dims=rows.layer.row_dims)
    if len(parts) == 1:
        return first
    scales = [part.scales for part in parts]
    zero_points = [part.zero_points for part in parts]
    if any(zeros.size for zeros in zero_points):
        zero_points = [z if z.size else np.zeros_like(s) for s, z in zip(scales, zero_points, strict=True)]
    if first.quant_axis == -1 and first.scales.size:  # one scale a block: one a row says the same
        scales = [np.repeat(s, piece.rows) for s, piece in zip(scales, found, strict=True)]
        zero_points = [np.repeat(z, piece.rows) for z, piece in zip(zero_points, found, strict=True)]
        first = replace(first, quant_axis=0)
    return replace(first, codes=codes, scales=np.concatenate(scales), zero_points=np.concatenate(zero_points))
