"""Layers → row blocks that a worker can hold → shards of about equal bytes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantSpec, ResolvedLayer
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig
from arrowquant_dist.format.parquet.pages import MAX_VALUE_NBYTES
from arrowquant_dist.plan.blocks import RowBlock, Shard
from arrowquant_dist.plan.sizes import SCALE_NBYTES, scales_row_nbytes
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.tensor import row_nbytes

MAX_DIMENSION = (1 << 31) - 1  # V2's `shape` is int32
MAX_BLOCKS = 1_000_000

MIN_SHARD_NBYTES = 8 << 20  # below, a part's own cost (requests, footer, commit) outweighs it
SHARDS_AT_LEAST = 32  # where there is enough, so that workers can share a small model too
MIN_RANK_NBYTES = (
    8 << 10
)  # of one rank's part of a layer: below, rows cost more than they save the other ranks
BLOCK_OVERHEAD_NBYTES = 4096  # what a row block costs besides its bytes: thousands of tiny ones fill a shard


def cut_layer(
    layer: Layer, resolved: ResolvedLayer, block_bytes: int, tensor_parallel: int = 1, together: int = 1
) -> list[RowBlock]:
    """The layer's row blocks, in order: as few of about equal size as stay within `block_bytes`, at least `together`
    rows, which are never divided. tensor_parallel: as in RunConfig; no block then reaches across an edge of
    `rank_edges` that does not divide them.

    Raises InvalidCheckpoint for a dimension that V2 can't hold, InvalidConfig for rows beyond a Parquet
    value.
    """
    spec = resolved.spec
    rows, columns = math.prod(layer.shape[: spec.row_dims]), math.prod(layer.shape[spec.row_dims :])
    parts = [0, rows] if tensor_parallel == 1 else rank_edges(layer, spec, tensor_parallel)
    parts = parts if together == 1 else [edge for edge in parts if edge % together == 0]
    # Nearly all layers: no array of theirs can outgrow a Parquet value, even with a scale for each code.
    nbytes = rows * columns * DTYPES[layer.dtype].itemsize
    if len(parts) == 2 and 0 < nbytes <= block_bytes and nbytes <= MAX_VALUE_NBYTES // SCALE_NBYTES:
        return [RowBlock(layer, spec, 0, rows, resolved.kept_reason)]
    if max(layer.shape[spec.row_dims :], default=0) > MAX_DIMENSION:
        raise _too_long(layer, spec.row_dims)
    most = _rows_at_most(layer, resolved, columns, block_bytes, together)
    counts = [max(1, -(-(stop - start) // most)) for start, stop in pairwise(parts)]
    if sum(counts) > MAX_BLOCKS:
        message = (
            f"would be cut into {sum(counts)} row blocks, at most {MAX_BLOCKS} can be; raise block_bytes"
        )
        raise InvalidConfig(message, layer=layer.name, uri=redact(layer.uri))
    if counts == [1] and max(layer.shape, default=0) > MAX_DIMENSION:
        raise _too_long(layer, 0)
    edges = [0]
    for (start, stop), count in zip(pairwise(parts), counts, strict=True):
        runs = (stop - start) // together
        edges += [start + runs * index // count * together for index in range(1, count + 1)]
    return [
        RowBlock(layer, spec, start, stop - start, resolved.kept_reason) for start, stop in pairwise(edges)
    ]


def rank_edges(layer: Layer, spec: QuantSpec, tensor_parallel: int) -> list[int]:
    """Rows from 0 to the last at which a rank's part of the layer's first dimension begins or ends, ascending.

    Of as many ranks as `tensor_parallel` and of each number that divides it, cut as torch.tensor_split does: where the
    dimension is no multiple of it, the edges of fewer ranks are not among those of more. Left out are numbers of ranks
    of whose parts one would store less than MIN_RANK_NBYTES, and all of them for vectors, which are whole on each rank.
    """
    rows, columns = math.prod(layer.shape[: spec.row_dims]), math.prod(layer.shape[spec.row_dims :])
    edges = {0, rows}
    if len(layer.shape) > 1 and rows:
        stored = row_nbytes(spec.quant_type, columns, layer.dtype) + scales_row_nbytes(spec, columns)
        size, most = layer.shape[0], rows * stored // MIN_RANK_NBYTES
        for ranks in range(2, min(tensor_parallel, most) + 1):
            if tensor_parallel % ranks == 0:
                each, more = divmod(size, ranks)
                edges.update((rank * each + min(rank, more)) * (rows // size) for rank in range(1, ranks))
    return sorted(edges) if rows else [0, 0]


def group_shards(blocks: Sequence[RowBlock], shard_bytes: int) -> tuple[Shard, ...]:
    """Runs of neighbouring blocks, of about equal source bytes and at most `shard_bytes`.

    A single block, or the blocks of a layer with one scale for the tensor (whose worker passes over all of it
    twice), stay together whatever they have. The blocks and the settings alone decide, not how many workers
    come.
    """
    starts = _atom_starts(blocks)
    weights = np.array([block.source_nbytes + BLOCK_OVERHEAD_NBYTES for block in blocks], np.int64)
    ends = np.cumsum(np.add.reduceat(weights, starts))
    target = min(shard_bytes, max(MIN_SHARD_NBYTES, int(ends[-1]) // SHARDS_AT_LEAST))
    cuts = _merge_small(ends, _even_cuts(ends.tolist(), target), target // 4, shard_bytes)
    edges = [0, *(starts[cut] for cut in cuts[:-1]), len(blocks)]
    return tuple(Shard(index, tuple(blocks[a:b])) for index, (a, b) in enumerate(pairwise(edges)))


def _rows_at_most(
    layer: Layer, resolved: ResolvedLayer, columns: int, block_bytes: int, together: int
) -> int:
    """How many rows a block may have, a multiple of `together`: by its bytes, and by what V2 and Parquet can hold."""
    spec = resolved.spec
    source = columns * DTYPES[layer.dtype].itemsize  # what is stored of values that only `none` can hold
    stored = max(source, row_nbytes(spec.quant_type, columns, layer.dtype), scales_row_nbytes(spec, columns))
    if stored > MAX_VALUE_NBYTES:
        message = (
            f"a row of {columns} values is more than a Parquet value can hold; make rows shorter by row_dims"
        )
        raise InvalidConfig(message, layer=layer.name, uri=redact(layer.uri))
    by_source = max(together, block_bytes // source) if source else MAX_DIMENSION
    most = min(by_source, MAX_VALUE_NBYTES // max(1, stored), MAX_DIMENSION)
    if together > 1 and most < together:
        message = (
            "its rows depend on each other, and are more than a Parquet value can hold together; choose another method "
            "for the layer by an override"
        )
        raise InvalidConfig(message, layer=layer.name, uri=redact(layer.uri))
    return most // together * together


def _too_long(layer: Layer, first: int) -> InvalidCheckpoint:
    message = f"the dimension {max(layer.shape[first:])} does not fit V2's int32 shape"
    return InvalidCheckpoint(message, layer=layer.name, uri=redact(layer.uri))


def _atom_starts(blocks: Sequence[RowBlock]) -> list[int]:
    """Where the runs of blocks begin that must share a shard: each block's own, but for per-tensor layers."""
    return [
        index
        for index, block in enumerate(blocks)
        if block.row_start == 0 or not block.spec.chooses_codes or block.spec.quant_axis == 0
    ]


def _even_cuts(ends: Sequence[int], target: int) -> list[int]:
    """Where shards end: as few as `target` allows, and then the smallest limit that needs no more of them."""
    cuts = _cuts(ends, target, len(ends))
    low, high = 1, target
    while low < high:
        limit = (low + high) // 2
        tried = _cuts(ends, limit, len(cuts))
        if tried[-1] == len(ends):
            cuts, high = tried, limit
        else:
            low = limit + 1
    return cuts


def _cuts(ends: Sequence[int], limit: int, most: int) -> list[int]:
    """Greedy: each shard takes what fits in `limit`, at least one atom; gives up after `most` shards.

    ends: n cumulative weights, the last cut is n where all fits. A list, for `bisect`: numpy's searchsorted for one
    value at a time was a good part of 5 s that a driver of 200,000 layers lost (25.6 s instead of 30.9).
    """
    cuts: list[int] = []
    cut = before = 0
    while cut < len(ends) and len(cuts) < most:
        cut = max(cut + 1, bisect_right(ends, before + limit, lo=cut))
        cuts.append(cut)
        before = ends[cut - 1]
    return cuts


def _merge_small(ends: np.ndarray, cuts: list[int], small: int, limit: int) -> list[int]:
    """Joins two neighbours of which one is below `small`, where both stay within `limit`.

    Such scraps lie between big layers (the norms beside an embedding), and each would be a part of its own.
    """
    merged: list[tuple[int, int]] = []  # (weight, cut)
    for weight, cut in zip(np.diff(ends[np.array(cuts) - 1], prepend=0).tolist(), cuts, strict=True):
        last = merged[-1][0] if merged else limit
        if min(weight, last) < small and weight + last <= limit:
            merged[-1] = (weight + last, cut)
        else:
            merged.append((weight, cut))
    return [cut for _, cut in merged]
