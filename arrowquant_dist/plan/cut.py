"""Cuts layers into row blocks that a worker can hold, and groups these into shards of about equal bytes."""

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

MIN_SHARD_NBYTES = 8 << 20  # for smaller shards, the overhead of a part (requests, footer, commit) dominates
SHARDS_AT_LEAST = 32  # if the model is large enough, so that workers can share a small model too
MIN_RANK_NBYTES = (
    8 << 10
)  # of one rank's part of a layer; smaller parts cost more V2 rows than they save the other ranks
BLOCK_OVERHEAD_NBYTES = 4096  # cost of a row block besides its bytes: thousands of tiny ones fill a shard


def cut_layer(
    layer: Layer, resolved: ResolvedLayer, block_bytes: int, tensor_parallel: int = 1, together: int = 1
) -> list[RowBlock]:
    """The layer's row blocks, in order: as few as possible of about equal size, each within `block_bytes`.

    together: number of rows that are never separated; a block has at least so many, even beyond `block_bytes`.
    tensor_parallel: as in RunConfig; no block crosses an edge of `rank_edges`, except edges that would separate such
    rows.

    Raises InvalidCheckpoint for a dimension that V2 can't hold, InvalidConfig for rows too large for a Parquet value.
    """
    spec = resolved.spec
    rows, columns = math.prod(layer.shape[: spec.row_dims]), math.prod(layer.shape[spec.row_dims :])
    parts = [0, rows] if tensor_parallel == 1 else rank_edges(layer, spec, tensor_parallel)
    parts = parts if together == 1 else [edge for edge in parts if edge % together == 0]
    # True of nearly all layers: none of their arrays can outgrow a Parquet value, even with a scale per code.
    nbytes = rows * columns * DTYPES[layer.dtype].itemsize
    if len(parts) == 2 and 0 < nbytes <= block_bytes and nbytes <= MAX_VALUE_NBYTES // SCALE_NBYTES:
        return [RowBlock(layer, spec, 0, rows, resolved.kept_reason)]
    if max(layer.shape[spec.row_dims :], default=0) > MAX_DIMENSION:
        raise _too_long(layer, spec.row_dims)
    most = _rows_at_most(layer, resolved, columns, block_bytes, together)
    counts = [max(1, -(-(stop - start) // most)) for start, stop in pairwise(parts)]
    if sum(counts) > MAX_BLOCKS:
        message = f"would be cut into {sum(counts)} row blocks, more than the {MAX_BLOCKS} allowed; raise block_bytes"
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
    """The rows, ascending, at which a rank's part of the layer's first dimension begins or ends; includes 0 and the
    number of rows.

    Covers `tensor_parallel` ranks and each divisor of that number, cut as torch.tensor_split does: if the dimension
    is not a multiple, the edges for fewer ranks are not among those for more. Omitted are numbers of ranks for which
    a rank's part would be stored in less than MIN_RANK_NBYTES, and all of them for vectors, which every rank holds
    whole.
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
    """Groups neighbouring blocks into shards of about equal source bytes, at most `shard_bytes` each.

    A single block, and the blocks of a layer with one scale for the tensor (whose worker reads all of it twice), stay
    together whatever their size. The result depends only on the blocks and the settings, not on the number of
    workers.
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
    """Maximum number of rows per block, a multiple of `together`: limited by `block_bytes`, and by what V2 and
    Parquet can hold."""
    spec = resolved.spec
    source = columns * DTYPES[layer.dtype].itemsize  # stored if only `none` can hold the values
    stored = max(source, row_nbytes(spec.quant_type, columns, layer.dtype), scales_row_nbytes(spec, columns))
    if stored > MAX_VALUE_NBYTES:
        message = f"a row of {columns} values is more than a Parquet value can hold; make rows shorter with row_dims"
        raise InvalidConfig(message, layer=layer.name, uri=redact(layer.uri))
    by_source = max(together, block_bytes // source) if source else MAX_DIMENSION
    most = min(by_source, MAX_VALUE_NBYTES // max(1, stored), MAX_DIMENSION)
    if together > 1 and most < together:
        message = (
            "its rows depend on each other, and together are more than a Parquet value can hold; choose another method "
            "for the layer with an override"
        )
        raise InvalidConfig(message, layer=layer.name, uri=redact(layer.uri))
    return most // together * together


def _too_long(layer: Layer, first: int) -> InvalidCheckpoint:
    message = f"the dimension {max(layer.shape[first:])} does not fit V2's int32 shape"
    return InvalidCheckpoint(message, layer=layer.name, uri=redact(layer.uri))


def _atom_starts(blocks: Sequence[RowBlock]) -> list[int]:
    """Indices at which the runs of blocks begin that must share a shard: every block, except the later ones of
    per-tensor layers."""
    return [
        index
        for index, block in enumerate(blocks)
        if block.row_start == 0 or not block.spec.chooses_codes or block.spec.quant_axis == 0
    ]


def _even_cuts(ends: Sequence[int], target: int) -> list[int]:
    """Where shards end: as few shards as `target` allows, with the smallest limit that needs no more of them."""
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

    ends: n cumulative weights; the last cut is n if everything fits. A list, for `bisect`: numpy's searchsorted,
    called for one value at a time, took most of 5 s of a driver's time for 200,000 layers (25.6 s instead of 30.9).
    """
    cuts: list[int] = []
    cut = before = 0
    while cut < len(ends) and len(cuts) < most:
        cut = max(cut + 1, bisect_right(ends, before + limit, lo=cut))
        cuts.append(cut)
        before = ends[cut - 1]
    return cuts


def _merge_small(ends: np.ndarray, cuts: list[int], small: int, limit: int) -> list[int]:
    """Joins two neighbouring shards of which one is below `small`, if together they stay within `limit`.

    Such small shards occur between big layers (the norms beside an embedding), and each would be a part of its own.
    """
    merged: list[tuple[int, int]] = []  # (weight, cut)
    for weight, cut in zip(np.diff(ends[np.array(cuts) - 1], prepend=0).tolist(), cuts, strict=True):
        last = merged[-1][0] if merged else limit
        if min(weight, last) < small and weight + last <= limit:
            merged[-1] = (weight + last, cut)
        else:
            merged.append((weight, cut))
    return [cut for _, cut in merged]
