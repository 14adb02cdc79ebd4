"""What a dataset holds, known from small columns alone: its row blocks, grouped into layers, and checked."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from arrowquant_dist.config import BITS
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, IncompleteDataset
from arrowquant_dist.format.record import RowRecord, StoredRange
from arrowquant_dist.format.schema import CHUNK_NBYTES
from arrowquant_dist.tensor import row_nbytes

MAX_NBYTES = 1 << 62
STORED_TYPES = frozenset({*BITS, "fp16", "none"})
DIGEST_NBYTES = 16


@dataclass(frozen=True, slots=True)
class BlobRanges:
    """Where a row's four values lie in its object: what reads them with plain ranges, without Parquet."""

    compression: str
    data: StoredRange
    scales: StoredRange
    zero_points: StoredRange
    chunk_digests: StoredRange

    @property
    def all(self) -> tuple[StoredRange, ...]:
        return self.data, self.scales, self.zero_points, self.chunk_digests


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """One V2 row without its blobs: rows [row_start, row_stop) of a layer, the layer seen as [rows, columns].

    path: the object, under the dataset's root. checksum: "" in V1. ranges: None where Parquet alone knows.
    """

    layer_name: str
    path: str
    row_group: int
    row_in_group: int
    shape: tuple[int, ...]
    layer_shape: tuple[int, ...]
    row_dims: int
    row_start: int
    dtype: str
    quant_type: str
    quant_axis: int
    group_size: int
    num_params: int
    checksum: str
    ranges: BlobRanges | None = None

    @classmethod
    def from_record(cls, path: str, record: RowRecord) -> StoredBlock:
        """What the index says of a row in the part at `path`."""
        ranges = BlobRanges(
            record.compression, record.data, record.scales, record.zero_points, record.chunk_digests
        )
        return cls(
            layer_name=record.layer_name,
            path=path,
            row_group=record.row_group,
            row_in_group=record.row_in_group,
            shape=record.shape,
            layer_shape=record.layer_shape,
            row_dims=record.row_dims,
            row_start=record.row_start,
            dtype=record.dtype,
            quant_type=record.quant_type,
            quant_axis=record.quant_axis,
            group_size=record.group_size,
            num_params=record.num_params,
            checksum=record.checksum,
            ranges=ranges,
        )

    @property
    def is_whole(self) -> bool:
        return self.row_start == 0 and self.shape == self.layer_shape

    @property
    def own_row_dims(self) -> int:
        """How many leading dimensions of `shape` make up the rows: a block of fused experts has one."""
        return self.row_dims if self.is_whole else 1

    @property
    def rows(self) -> int:
        return math.prod(self.shape[: self.own_row_dims])

    @property
    def row_stop(self) -> int:
        return self.row_start + self.rows

    @property
    def columns(self) -> int:
        return math.prod(self.layer_shape[self.row_dims :])

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in `data`; each row starts on a byte of its own."""
        return row_nbytes(self.quant_type, self.columns, self.dtype)

    @property
    def data_nbytes(self) -> int:
        return self.rows * self.row_nbytes

    @property
    def groups_per_row(self) -> int:
        """Scales a row has; 0 where the block has one for all, or none."""
        if self.quant_type not in BITS or self.quant_axis != 0:
            return 0
        return -(-self.columns // self.group_size) if self.group_size else 1

    @property
    def scale_count(self) -> int:
        if self.quant_type not in BITS:
            return 0
        return self.rows * self.groups_per_row if self.quant_axis == 0 else 1

    @property
    def digests_nbytes(self) -> int:
        return DIGEST_NBYTES * -(-self.data_nbytes // CHUNK_NBYTES) if self.checksum else 0

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the row's values in its object (where only Parquet knows: decompressed)."""
        if self.ranges is None:
            return self.data_nbytes + 4 * self.scale_count + self.digests_nbytes
        return sum(value.stored_nbytes for value in self.ranges.all)


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer of a dataset. shape: the whole layer's. blocks: complete, sorted by row_start."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    row_dims: int
    blocks: tuple[StoredBlock, ...]

    @property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[: self.row_dims])

    @property
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
        """The blocks' type; `mixed` where they differ (a block that fp16 cannot hold is `none`)."""
        types = {block.quant_type for block in self.blocks}
        return types.pop() if len(types) == 1 else "mixed"


def block_problem(block: StoredBlock) -> str | None:
    """What is impossible about a block, known before any memory is taken for its values; None if nothing."""
    if block.dtype not in DTYPES:
        return f"dtype {block.dtype!r} is not known"
    if block.quant_type not in STORED_TYPES:
        return f"quant_type {block.quant_type!r} is not known"
    if block.quant_type != "none" and not DTYPES[block.dtype].is_float:
        return f"quant_type {block.quant_type!r} does not go with dtype {block.dtype!r}"
    if min((*block.shape, *block.layer_shape, block.row_start, block.group_size), default=0) < 0:
        return "a dimension, row_start or group_size is negative"
    if not 1 <= block.row_dims <= max(1, len(block.layer_shape)):
        return f"row_dims {block.row_dims} does not go with the layer's shape {list(block.layer_shape)}"
    if math.prod(block.layer_shape) * DTYPES[block.dtype].itemsize > MAX_NBYTES:
        return f"shape {list(block.layer_shape)} is too large to be one"
    if not block.is_whole and block.shape[1:] != block.layer_shape[block.row_dims :]:
        return f"shape {list(block.shape)} is not a run of rows of {list(block.layer_shape)}"
    if not block.is_whole and not block.shape:
        return "a scalar cannot be a row block"
    if block.row_stop > math.prod(block.layer_shape[: block.row_dims]):
        return f"rows {block.row_start}-{block.row_stop} lie outside the layer, {list(block.layer_shape)}"
    if block.num_params != math.prod(block.shape):
        return f"num_params is {block.num_params}, but shape {list(block.shape)} has others"
    if block.quant_axis not in {-1, 0} or (block.group_size > 0 and block.quant_axis != 0):
        return f"quant_axis {block.quant_axis} with group_size {block.group_size} is not a V2 layout"
    return _ranges_problem(block)


def _ranges_problem(block: StoredBlock) -> str | None:
    ranges = block.ranges
    if ranges is None:
        return None
    if ranges.compression not in {"none", "zstd"}:
        return f"compression {ranges.compression!r} is not known"
    if min(min(value.offset, value.stored_nbytes, value.nbytes) for value in ranges.all) < 0:
        return "a byte range is negative"
    if ranges.compression == "none" and any(value.stored_nbytes != value.nbytes for value in ranges.all):
        return "an uncompressed value's stored size differs from its size"
    if any(value.stored_nbytes > value.nbytes + value.nbytes // 128 + 1024 for value in ranges.all):
        return "a compressed value is larger than zstd makes it"
    sizes = [value.nbytes for value in ranges.all]
    return sizes_problem(block, *sizes)


def sizes_problem(
    block: StoredBlock, data_nbytes: int, scales_nbytes: int, zero_points_nbytes: int, digests_nbytes: int
) -> str | None:
    """What is wrong with the sizes of a block's four values; None if nothing. V1 has no digests."""
    if data_nbytes != block.data_nbytes:
        return f"data has {data_nbytes} bytes, but shape and quant_type need {block.data_nbytes}"
    if digests_nbytes != block.digests_nbytes:
        return f"chunk_digests has {digests_nbytes} bytes, but the data needs {block.digests_nbytes}"
    expected = 4 * block.scale_count
    if scales_nbytes != expected and not (block.num_params == 0 and scales_nbytes == 0):
        return f"scales has {scales_nbytes} bytes, but the groups need {expected}"
    if zero_points_nbytes not in {0, scales_nbytes}:
        return f"zero_points has {zero_points_nbytes} bytes, scales {scales_nbytes}"
    return None


def group_layers(
    blocks: Iterable[StoredBlock], url: Callable[[str], str]
) -> tuple[dict[str, StoredLayer], list[ArrowQuantError]]:
    """Layers by name in the order of their first block, and every reason why some of them cannot be used.

    A layer with an impossible block, a gap or an overlap is not among the layers. url: full URI of a path.
    """
    grouped: defaultdict[str, list[StoredBlock]] = defaultdict(list)
    errors: list[ArrowQuantError] = []
    broken = set()
    for block in blocks:
        problem = block_problem(block)
        if problem is not None:
            message = f"{problem}; fetch the object again or quantize anew"
            errors.append(CorruptWeights(message, layer=block.layer_name, uri=url(block.path)))
            broken.add(block.layer_name)
        grouped[block.layer_name].append(block)
    layers = {}
    for name, members in grouped.items():
        if name in broken:
            continue
        first, *_ = ordered = sorted(members, key=lambda block: (block.row_start, block.row_stop))
        found = list(_coverage_errors(ordered, url))
        errors += found
        if not found:
            layers[name] = StoredLayer(name, first.layer_shape, first.dtype, first.row_dims, tuple(ordered))
    return layers, errors


def _coverage_errors(blocks: list[StoredBlock], url: Callable[[str], str]) -> Iterator[ArrowQuantError]:
    """blocks: of one layer, sorted by row_start. They have to agree, and to cover each row once."""
    first = blocks[0]
    name = first.layer_name
    for block in blocks[1:]:
        if (block.layer_shape, block.dtype, block.row_dims) != (
            first.layer_shape,
            first.dtype,
            first.row_dims,
        ):
            message = f"its rows disagree on shape or dtype with those in {first.path}; quantize anew"
            yield CorruptWeights(message, layer=name, uri=url(block.path))
            return
    for before, block in pairwise(blocks):
        if block.row_start < before.row_stop or (block.is_whole and before.is_whole):
            rows = f"rows {block.row_start}-{min(before.row_stop, block.row_stop)}"
            message = f"{rows} are stored twice, also in {before.path}; remove what does not belong"
            yield CorruptWeights(message, layer=name, uri=url(block.path))
            return
    edges = [0, *(edge for block in blocks for edge in (block.row_start, block.row_stop))]
    edges.append(math.prod(first.layer_shape[: first.row_dims]))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if start < stop:
            message = f"rows {start}-{stop} are missing; complete the run, or fetch all of its objects"
            yield IncompleteDataset(message, layer=name, uri=url(first.path))
