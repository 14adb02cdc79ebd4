"""Assembles parts of a layer from the blocks that hold them, as loads that state how much memory they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.neighbours import JOINED_NBYTES, Neighbours, each_alone, neighbours
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.dataset.prefetch import Lane, Load
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.format.digests import CHUNK_NBYTES
from arrowquant_dist.tensor import QuantizedTensor, row_nbytes

_SHARED_NBYTES = 8 << 20  # stored data that is worth a lane of its own
_UNEVEN_NBYTES = 2 << 20  # cuts are moved by up to half of this, so that each chunk is read once
DIRECT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Assembler:
    """Makes loads of at most `workers` lanes, or fewer if their memory would exceed `limit_nbytes`."""

    dataset: Dataset
    workers: int
    limit_nbytes: int
    verify: bool

    def values(
        self, region: Region, dtype: str, out: np.ndarray | None = None, allocate: Allocate = fresh
    ) -> Load[np.ndarray]:
        """A load of decoded values: bits of `dtype` in numpy, [*region.shape], in memory from `allocate` or in `out`
        (C-contiguous, of the same size, possibly uint8), which the budget does not count."""
        found = [part for piece, first in region.pieces for part in self._split(piece, first)]
        columns = region.columns
        taken = None if region.has_all_columns else columns
        bits = np.dtype(DTYPES[dtype].bits)

        def begin() -> tuple[Sequence[Lane], Callable[[], np.ndarray]]:
            memory = allocate(region.num_params * bits.itemsize) if out is None else out.reshape(-1)
            whole = memory.view(bits)
            rows = whole.reshape(region.rows, len(columns))

            def fill(index: int) -> None:
                stored, first = found[index]
                place = rows[first : first + stored.rows].reshape(-1)
                self.dataset.values_into(stored, place.view(np.uint8), dtype, taken, verify=self.verify)

            return self._lanes(fill, groups, lanes), lambda: whole.reshape(region.shape)

        wide = 0 if dtype in DIRECT_DTYPES else 4  # for other dtypes values are decoded to float32 first
        costs = [
            self.dataset.values_into_nbytes(piece, verify=self.verify) + wide * piece.rows * len(columns)
            for piece, _ in found
        ]
        result_nbytes = region.num_params * bits.itemsize if out is None else 0
        decodes = tuple(piece for piece, _ in found)
        groups = self._grouped(decodes, costs, result_nbytes)
        lanes, extra = self._fit(groups, result_nbytes)
        return Load(region.layer.name, result_nbytes + extra, result_nbytes, begin, decodes)

    def quantized(self, region: Region) -> Load[QuantizedTensor]:
        """A load of codes, scales and zero points as one tensor of `region.shape`, in new memory."""
        found, layer, columns = region.pieces, region.layer, region.columns
        if layer.quant_type == "mixed" or not found:
            return self._raw(region)
        width = row_nbytes(layer.quant_type, len(columns), layer.dtype)
        nbytes = [piece.rows * width for piece, _ in found]
        offsets = [0, *accumulate(nbytes)]

        def begin() -> tuple[Sequence[Lane], Callable[[], QuantizedTensor]]:
            parts: dict[int, QuantizedTensor] = {}
            codes = self.dataset.allocate(sum(nbytes) if len(found) > 1 else 0)

            def fill(index: int) -> None:
                piece, place = found[index][0], codes[offsets[index] : offsets[index + 1]]
                part = self._read(piece, place)
                if not region.has_all_columns:
                    part = _columns_of(part, region)
                if len(found) > 1:
                    if not np.may_share_memory(part.codes, place):
                        place[:] = part.codes
                    part = replace(part, codes=codes[:0])
                parts[index] = part

            return self._lanes(fill, groups, lanes), lambda: _join(
                region, codes, found, [parts[i] for i in range(len(found))]
            )

        numbers = sum(16 * piece.rows * max(1, _groups(piece, columns)) for piece, _ in found)
        result_nbytes = sum(nbytes) + numbers
        costs = [self._read_nbytes(piece) for piece, _ in found]
        if not region.has_all_columns:
            costs = [cost + cut for cost, cut in zip(costs, nbytes, strict=True)]
        groups = self._grouped([piece for piece, _ in found], costs, result_nbytes)
        lanes, extra = self._fit(groups, result_nbytes)
        return Load(layer.name, result_nbytes + extra, result_nbytes, begin)

    def by_block(self, region: Region) -> Iterator[QuantizedTensor]:
        """Yields the blocks of a region of whole rows whose layer is not `mixed`, each in memory of its own. A block is
        read in the calling thread when it is asked for."""
        return (self._read(piece) for piece, _ in region.pieces)

    def joined_scales(self, region: Region, parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
        """What `scales` loads, made from the tensors of `by_block`, with or without codes."""
        return _join(region, np.empty(0, np.uint8), region.pieces, parts)

    def scales(self, region: Region) -> Load[QuantizedTensor]:
        """Like `quantized` for whole rows, but only with scales and zero points: codes are not read."""
        found, no_codes = region.pieces, np.empty(0, np.uint8)
        if region.layer.quant_type == "mixed" or not found:
            return self._raw(region)

        def begin() -> tuple[Sequence[Lane], Callable[[], QuantizedTensor]]:
            parts: dict[int, QuantizedTensor] = {}

            def fill(index: int) -> None:
                parts[index] = self.dataset.read_scales(found[index][0], verify=self.verify)

            return self._lanes(fill, groups, lanes), lambda: _join(
                region, no_codes, found, [parts[i] for i in range(len(found))]
            )

        costs = [self.dataset.scales_nbytes(piece) for piece, _ in found]
        result_nbytes = sum(16 * piece.rows * max(1, _groups(piece, region.columns)) for piece, _ in found)
        groups = each_alone([piece for piece, _ in found], costs)
        lanes, extra = self._fit(groups, result_nbytes)
        return Load(region.layer.name, result_nbytes + extra, result_nbytes, begin)

    def _raw(self, region: Region) -> Load[QuantizedTensor]:
        """A load of decoded values as an unquantized tensor, for blocks of several types."""
        dtype, row_dims = region.layer.dtype, region.layer.row_dims
        none = np.empty(0, np.float32)

        def wrap(values: np.ndarray) -> QuantizedTensor:
            codes = values.reshape(-1).view(np.uint8)
            return QuantizedTensor(region.shape, dtype, "none", codes, none, none, -1, 0, row_dims)

        return self.values(region, dtype).then(wrap)

    def _split(self, piece: Piece, first: int) -> list[tuple[Piece, int]]:
        """Splits a large piece into one for each lane, at ends of chunks if rows end there often enough, because a
        chunk that is cut is read twice."""
        width = piece.block.row_nbytes
        count = min(self.workers, piece.rows * width // _SHARED_NBYTES, piece.rows)
        if count < 2 or not self.dataset.reads_in_steps(piece.block):
            return [(piece, first)]
        rows = CHUNK_NBYTES // math.gcd(CHUNK_NBYTES, width)
        unit = rows if rows * width <= _UNEVEN_NBYTES else 1
        cuts = [round((piece.start + piece.rows * i / count) / unit) * unit for i in range(1, count)]
        return [
            (Piece(piece.block, start, stop), first + start - piece.start)
            for start, stop in pairwise((piece.start, *cuts, piece.stop))
        ]

    def _read(self, piece: Piece, place: np.ndarray | None = None) -> QuantizedTensor:
        """place: memory in which codes of its size may be put; they may also be put elsewhere."""

        def allocate(nbytes: int) -> np.ndarray:
            return self.dataset.allocate(nbytes) if place is None or place.size != nbytes else place

        return self.dataset.read_piece(piece, verify=self.verify, allocate=allocate)

    def _read_nbytes(self, piece: Piece) -> int:
        return self.dataset.piece_nbytes(piece, verify=self.verify)

    def _grouped(self, pieces: Sequence[Piece], costs: Sequence[int], result_nbytes: int) -> list[Neighbours]:
        """Groups of pieces to read at once: if a request costs a round trip, several whole blocks, as long as no lane
        takes more than its share of the memory that is left besides the result. costs: peak memory of each piece
        alone."""
        is_far = not self.dataset.store.is_near and all(piece.block.ranges is not None for piece in pieces)
        if len(pieces) < 2 or not is_far or not all(piece.is_whole for piece in pieces):
            return each_alone(pieces, costs)
        read = [self.dataset.fetched_nbytes(piece) for piece in pieces]
        beside = [cost - nbytes for cost, nbytes in zip(costs, read, strict=True)]
        share = (self.limit_nbytes - result_nbytes) // self.workers
        return neighbours(pieces, beside, min(JOINED_NBYTES, share))

    def _fit(self, groups: Sequence[Neighbours], result_nbytes: int) -> tuple[int, int]:
        """(number of lanes that fit besides the result, at least 1; the most memory that they take together)."""
        if len(groups) == 1:
            return 1, groups[0].nbytes
        costs = sorted((group.nbytes for group in groups), reverse=True)
        for lanes in range(min(self.workers, len(costs)), 0, -1):
            extra = sum(costs[:lanes])
            if lanes == 1 or result_nbytes + extra <= self.limit_nbytes:
                return lanes, extra
        return 1, 0

    def _lanes(self, work: Callable[[int], None], groups: Sequence[Neighbours], lanes: int) -> list[Lane]:
        """Lanes that each take the next group that no lane has begun, until there is none left."""
        coming = iter(groups)  # an iterator of a list or tuple: `next` is atomic, whichever threads call it

        def run() -> None:
            for group in coming:
                group.read(self.dataset, work)

        return [run] * lanes


def _columns_of(part: QuantizedTensor, region: Region) -> QuantizedTensor:
    try:
        return part.columns(region.columns.start, region.columns.stop)
    except InvalidConfig as error:
        raise InvalidConfig(error.message, layer=region.layer.name) from error


def _groups(piece: Piece, columns: range) -> int:
    """Upper bound of the number of scales of a row of these columns, which are cut from those of its block."""
    size = piece.block.header.group_size
    return -(-len(columns) // math.gcd(size, columns.start)) if size else 1


def _join(
    region: Region,
    codes: np.ndarray,
    found: Sequence[tuple[Piece, int]],
    parts: Sequence[QuantizedTensor],
) -> QuantizedTensor:
    """One tensor from blocks that follow each other. codes: those of all blocks, used if there are several."""
    first = replace(parts[0], shape=region.shape, row_dims=region.layer.row_dims)
    if len(parts) == 1:
        return first
    scales = [part.scales for part in parts]
    zero_points = [part.zero_points for part in parts]
    if any(zeros.size for zeros in zero_points):
        zero_points = [z if z.size else np.zeros_like(s) for s, z in zip(scales, zero_points, strict=True)]
    if first.quant_axis == -1 and first.scales.size:  # a scale per block becomes a scale per row
        scales = [np.repeat(s, piece.rows) for s, (piece, _) in zip(scales, found, strict=True)]
        zero_points = [np.repeat(z, piece.rows) for z, (piece, _) in zip(zero_points, found, strict=True)]
        first = replace(first, quant_axis=0)
    return replace(first, codes=codes, scales=np.concatenate(scales), zero_points=np.concatenate(zero_points))
