"""Upper bound of a worker's memory: the sum, over everything that a worker holds, of the largest size in the plan.

A worker keeps its buffers from shard to shard, so the maxima add up even if no single row block has all of them. Each
package states what its own objects hold (`Slice.beside_nbytes` of the encodings, `storage.memory`); counted here is
what a worker makes of them. tests/integration/test_worker_memory.py measures it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from arrowquant_dist.arena import aligned
from arrowquant_dist.config import RunConfig
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.methods import method_of
from arrowquant_dist.plan.batches import Batch, batches_of, read_ahead
from arrowquant_dist.plan.blocks import Plan, RowBlock, Shard
from arrowquant_dist.plan.sizes import expected_nbytes
from arrowquant_dist.storage.memory import reading_nbytes, writing_nbytes
from arrowquant_dist.storage.uris import is_local

_MIB = 1 << 20
# Python, numpy, pyarrow, Ray and the kernels: 255 MiB if their machine code comes from Numba's cache, up to 365 MiB
# if the worker compiles it, as the first one on a machine does.
PROCESS_NBYTES = 400 * _MIB
REMOTE_NBYTES = 64 * _MIB  # fsspec's file system, its libraries (botocore, aiohttp), and its connections
ROW_NBYTES = 6 << 10  # per row of a shard: its block, its record, and the record as the text of a commit
SMALL_ROWS_NBYTES = 8 * _MIB  # small rows that wait to share a row group, and the one that completes it
_CONVERTED = {
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
}  # converted to float32 before they are quantized: 4 bytes per value
_FLOAT16_NBYTES = 2  # per value that is kept as fp16
_MEASURED_VALUES = 1 << 20  # values of a kept block that are measured at a time
_MEASURED_NBYTES = 40  # per value measured: five float64


@dataclass(frozen=True, slots=True)
class _Read:
    """Bytes held while reading. batches: the buffers of the batches. beside: additional memory for decoding them."""

    batches: int = 0
    beside: int = 0


def worker_memory_nbytes(plan: Plan, target: str, run: RunConfig) -> int:
    """Upper bound of one worker's memory: a function of the largest row block and the settings, not of the model.

    target: where its parts go. run: the settings that `plan` was made with, including the transfer settings.
    """
    sources = [file["uri"] for file in plan.source["files"]]
    sides = [file["uri"] for side in plan.side_inputs.values() for file in side["files"]]
    side = max(map(_side_nbytes, plan.blocks), default=0) if sides else 0
    is_remote = not all(map(is_local, sources))
    read = _read(plan.shards, is_remote=is_remote, row_nbytes=plan.source.get("largest_row_nbytes", 0))
    stored = [[_stored_nbytes(block) for block in shard.blocks] for shard in plan.shards]
    part = max(map(sum, stored), default=0)
    frame = max(map(max, stored), default=0) if plan.compression == "zstd" else 0
    return sum(
        (
            PROCESS_NBYTES,
            REMOTE_NBYTES if is_remote or not all(map(is_local, [target, *sides])) else 0,
            ROW_NBYTES * max((len(shard.blocks) for shard in plan.shards), default=0),
            read.batches,
            read.beside,
            max((reading_nbytes(uri, run.source_storage, read.batches) for uri in sources), default=0),
            max(map(expected_nbytes, plan.blocks), default=0),
            max(map(_quantizing_nbytes, plan.blocks), default=0),
            side,
            max((reading_nbytes(uri, run.source_storage, side) for uri in sides), default=0),
            min(SMALL_ROWS_NBYTES, part),
            frame,
            writing_nbytes(target, run.target_storage, part),
        )
    )


def _read(shards: Iterable[Shard], *, is_remote: bool, row_nbytes: int) -> _Read:
    """The maximum over all shards. row_nbytes: the largest row of a source dataset; one is read at a time, also when
    reading ahead."""
    buffers: list[int] = []  # buffer i is as large as the largest batch of the shards that need i + 1 buffers
    beside = 0
    for shard in shards:
        found = [_batch(batch) for batch in batches_of(shard.blocks)]
        largest = max((batch.batches for batch in found), default=0)
        ahead = min(read_ahead(shard.blocks), len(found) - 1) if is_remote else 0
        buffers = [max(pair) for pair in zip_longest(buffers, [largest] * (ahead + 1), fillvalue=0)]
        beside = max(beside, max(ahead, 1) * max((batch.beside for batch in found), default=0))
    return _Read(sum(buffers), beside + row_nbytes)


def _batch(batch: Batch) -> _Read:
    """The buffers that a batch's blocks are read into together, and the most that decoding one of them adds."""
    nbytes = beside = 0
    for block in batch:
        layer = block.read_as
        made = layer.encoding.slice(layer, *block.value_range)
        nbytes += aligned(made.decoded_nbytes) + sum(aligned(r.stop - r.start) for r in made.ranges)
        beside = max(beside, made.beside_nbytes)
    return _Read(nbytes, beside)


def _stored_nbytes(block: RowBlock) -> int:
    """The most that may be stored for a block: values that its type cannot hold are stored as they are."""
    may_be_kept = block.spec.quant_type == "fp16" or block.spec.keep_non_finite
    return max(expected_nbytes(block), block.source_nbytes if may_be_kept else 0)


def _side_nbytes(block: RowBlock) -> int:
    """The side tensors that the block's method uses, and what it makes of them."""
    side_input = method_of(block.spec).side_input if block.side_tensors and block.spec.chooses_codes else None
    if side_input is None:
        return 0
    layer, spec = block.layer, block.spec
    return side_input.work_nbytes(layer.shape, spec.row_dims, block.rows, block.side_parts)


def _quantizing_nbytes(block: RowBlock) -> int:
    """Memory for making a block's codes, besides the codes themselves."""
    dtype = block.layer.dtype
    if not DTYPES[dtype].is_float:
        return 0
    measured = _MEASURED_NBYTES * min(block.num_params, _MEASURED_VALUES)
    if block.spec.is_quantized:
        converted = 4 * block.num_params if dtype in _CONVERTED else 0
        return converted + (measured if block.spec.keep_non_finite else 0)
    return measured + (_FLOAT16_NBYTES * block.num_params if block.spec.quant_type == "fp16" else 0)
