"""What a dataset holds, as known from its small columns: its row blocks, checked and grouped into layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import attrgetter

from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, IncompleteDataset
from arrowquant_dist.format.record import BlobRanges, RowRecord, ranges_problem
from arrowquant_dist.format.row import HEADER_NAMES, Blobs, RowHeader, row_problem, sizes_problem

# all of a row's header but its name and its checksum
_WHAT_COUNTS = attrgetter(*(name for name in HEADER_NAMES if name not in {"layer_name", "checksum"}))


@dataclass(frozen=True)
class StoredBlock:
    """One row of a dataset, without its values, and where they are.

    header: its small columns. path: path of the object, relative to the dataset's root. row_group, row_in_group: where
    the row is in the object. ranges: None if only Parquet knows them. What is derived from the header is cached,
    because computing it at each step takes longer than reading a small block.
    """

    header: RowHeader
    path: str
    row_group: int
    row_in_group: int
    ranges: BlobRanges | None = None

    @classmethod
    def from_record(cls, path: str, record: RowRecord) -> StoredBlock:
        """The block for an index record of a row in the part at `path`."""
        return cls(record.header, path, record.row_group, record.row_in_group, record.ranges)

    @cached_property
    def rows(self) -> int:
        """See RowHeader.rows."""
        return self.header.rows

    @cached_property
    def row_nbytes(self) -> int:
        """See RowHeader.row_nbytes."""
        return self.header.row_nbytes

    @cached_property
    def is_whole(self) -> bool:
        """See RowHeader.is_whole."""
        return self.header.is_whole

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the row's values in its object (decompressed if only Parquet knows where they are)."""
        if self.ranges is None:
            return self.header.data_nbytes + 4 * self.header.scale_count + self.header.digests_nbytes
        return sum(value.stored_nbytes for value in self.ranges)


@dataclass(frozen=True)
class StoredLayer:
    """A layer of a dataset. shape: shape of the whole layer. blocks: all of its blocks, sorted by row_start. Values
    derived from these are cached, as in StoredBlock."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    row_dims: int
    blocks: tuple[StoredBlock, ...]

    @cached_property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def rows(self) -> int:
        return math.prod(self.shape[: self.row_dims])

    @cached_property
    def columns(self) -> int:
        return math.prod(self.shape[self.row_dims :])

    @property
    def is_float(self) -> bool:
        return DTYPES[self.dtype].is_float

    @property
    def source_nbytes(self) -> int:
        return self.num_params * DTYPES[self.dtype].itemsize

    @property
    def stored_nbytes(self) -> int:
        return sum(block.stored_nbytes for block in self.blocks)

    @property
    def quant_type(self) -> str:
        """The type of all blocks; `mixed` if they differ (a block that fp16 cannot hold is `none`)."""
        types = {block.header.quant_type for block in self.blocks}
        return types.pop() if len(types) == 1 else "mixed"


class BlockProblems:
    """Finds impossible blocks before any memory is taken for their values.

    Layers of a model repeat a few shapes, so the result for a block is reused for all that are alike in what counts.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[str | None, str | None]] = {}

    def of(self, block: StoredBlock) -> str | None:
        """Why a block is impossible; None if it is possible."""
        ranges = block.ranges
        sizes = None if ranges is None else tuple([value.nbytes for value in ranges])
        alike = (*_WHAT_COUNTS(block.header), block.header.checksum == "", sizes)
        if alike not in self._known:
            self._known[alike] = _of_row(block), _of_sizes(block)
        of_row, of_sizes = self._known[alike]
        return of_row or (None if ranges is None else ranges_problem(ranges)) or of_sizes


def _of_row(block: StoredBlock) -> str | None:
    problem = row_problem(block.header)
    if problem is None and block.ranges is not None and not block.header.checksum:
        return "its checksum is missing"  # allowed in V1 only, and no index has V1 rows
    return problem


def _of_sizes(block: StoredBlock) -> str | None:
    if block.ranges is None or row_problem(block.header) is not None:
        return None
    return sizes_problem(block.header, Blobs(*(value.nbytes for value in block.ranges)))


def group_layers(
    blocks: Iterable[StoredBlock], url: Callable[[str], str]
) -> tuple[dict[str, StoredLayer], list[ArrowQuantError]]:
    """Layers by name in the order of their first block, and all errors that prevent some of them from being used.

    A layer with an impossible block, a gap or an overlap is left out. url: returns the full URI of a path.
    """
    grouped: defaultdict[str, list[StoredBlock]] = defaultdict(list)
    errors: list[ArrowQuantError] = []
    broken = set()
    problems = BlockProblems()
    for block in blocks:
        problem = problems.of(block)
        if problem is not None:
            message = f"{problem}; fetch the object again or quantize again"
            errors.append(CorruptWeights(message, layer=block.header.layer_name, uri=url(block.path)))
            broken.add(block.header.layer_name)
        grouped[block.header.layer_name].append(block)
    layers = {}
    for name, members in grouped.items():
        if name in broken:
            continue
        is_one = len(members) == 1 and members[0].is_whole  # as most are
        ordered = members if is_one else sorted(members, key=_by_rows)
        found = [] if is_one else list(_coverage_errors(ordered, url))
        errors += found
        if not found:
            first = ordered[0].header
            layers[name] = StoredLayer(name, first.layer_shape, first.dtype, first.row_dims, tuple(ordered))
    return layers, errors


def _by_rows(block: StoredBlock) -> tuple[int, int]:
    return block.header.row_start, block.header.row_stop


def _coverage_errors(blocks: list[StoredBlock], url: Callable[[str], str]) -> Iterator[ArrowQuantError]:
    """Yields an error unless the blocks of a layer agree and cover each row once. blocks: sorted by row_start."""
    first, path = blocks[0].header, blocks[0].path
    name = first.layer_name
    for block in blocks[1:]:
        row = block.header
        if (row.layer_shape, row.dtype, row.row_dims) != (first.layer_shape, first.dtype, first.row_dims):
            message = f"its rows disagree on shape or dtype with those in {path}; quantize again"
            yield CorruptWeights(message, layer=name, uri=url(block.path))
            return
    for (before, other), (row, block) in pairwise((block.header, block) for block in blocks):
        if row.row_start < before.row_stop or (row.is_whole and before.is_whole):
            rows = f"rows {row.row_start}-{min(before.row_stop, row.row_stop)}"
            message = f"{rows} are stored twice, also in {other.path}; remove what does not belong"
            yield CorruptWeights(message, layer=name, uri=url(block.path))
            return
    edges = [0, *(edge for block in blocks for edge in (block.header.row_start, block.header.row_stop))]
    edges.append(math.prod(first.layer_shape[: first.row_dims]))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if start < stop:
            message = f"rows {start}-{stop} are missing; complete the run, or fetch all of its objects"
            yield IncompleteDataset(message, layer=name, uri=url(path))
