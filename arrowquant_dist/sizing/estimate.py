"""Estimates the size of a plan's parts without reading all weights: some rows of a few layers of each kind are
quantized and compressed as a worker does it.

Layers are of one kind if their names differ in numbers alone and they are stored alike. Layers that are not looked at
are taken to have the mean size of those of their kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantSpec, RunConfig
from arrowquant_dist.config.patterns import without_numbers
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.plan import Plan, RowBlock, Shard, StoredSizes, expected_nbytes
from arrowquant_dist.sizing.framing import parts_nbytes
from arrowquant_dist.sizing.measure import Measured, measure
from arrowquant_dist.sizing.run import layers_of
from arrowquant_dist.sizing.sample import LayerSample, Run, sampled_runs

_VALUES = 1 << 23  # about how many values are looked at, of all layers together
_LEAST_VALUES, _MOST_VALUES = 1 << 13, 1 << 20  # of one layer
_OF_A_KIND = 4  # number of layers of a kind that are looked at
_KINDS = 2_000  # with more kinds than this, layers are of one kind by shape and spec alone
_WHOLE_VALUES = 1 << 24  # up to this size a layer with one scale is read whole, as any value may decide it
_FRAMED_SHARDS, _FRAMED_NBYTES = 12, 1 << 26  # what is laid out to see what a part has besides its values

Layers = Sequence[tuple[RowBlock, ...]]  # the row blocks of each layer


def estimated_sizes(plan: Plan, checkpoint: Checkpoint, run: RunConfig) -> StoredSizes:
    """Estimated sizes, right to about a hundredth. Raises what reading and quantizing the sampled rows raises."""
    layers = layers_of(plan)
    estimated = _uncompressed if plan.compression == "none" else _compressed
    with SourceReader(run.source_storage, checkpoint.files) as reader:
        sizes = estimated(layers, reader)
        reader.confirm()
    by_layer = {name: found.nbytes for name, found in sizes.items()}
    too_wide = frozenset(name for name, found in sizes.items() if found.too_wide)
    return StoredSizes(by_layer, sum(by_layer.values()) + _beside(plan, sizes), too_wide)


def _uncompressed(layers: Layers, reader: SourceReader) -> dict[str, Measured]:
    """Sizes that follow from the plan, but for layers in 16 bits, which are looked at: fp16 may not hold them."""
    looked_at = _compressed([blocks for blocks in layers if blocks[0].spec.quant_type == "fp16"], reader)
    too_wide = {name for name, found in looked_at.items() if found.too_wide}
    return {name: _as_they_are(blocks, too_wide) for blocks in layers for name in [blocks[0].layer.name]}


def _compressed(layers: Layers, reader: SourceReader) -> dict[str, Measured]:
    frames, sizes = ZstdFrames(), dict[str, Measured]()
    kinds = _kinds(layers)
    looked_at = sum(_params(blocks) for kind in kinds for blocks in _spread(kind))
    for kind in kinds:
        found = [_measured(blocks, reader, frames, looked_at) for blocks in _spread(kind)]
        for blocks in kind:
            sizes[blocks[0].layer.name] = _mean(found, blocks)
    return sizes


def _kinds(layers: Layers) -> list[list[tuple[RowBlock, ...]]]:
    by_name: dict[object, list[tuple[RowBlock, ...]]] = {}
    by_shape: dict[object, list[tuple[RowBlock, ...]]] = {}
    for blocks in layers:
        first = blocks[0]
        alike = (first.spec, first.layer.shape, first.layer.dtype, type(first.layer.encoding), len(blocks))
        by_shape.setdefault(alike, []).append(blocks)
        by_name.setdefault((without_numbers(first.layer.name), *alike), []).append(blocks)
    return [*(by_name if len(by_name) <= _KINDS else by_shape).values()]


def _spread(kind: Layers) -> list[tuple[RowBlock, ...]]:
    """Some layers of a kind, the first and the last among them."""
    count = min(_OF_A_KIND, len(kind))
    return [kind[round(index * (len(kind) - 1) / max(1, count - 1))] for index in range(count)]


def _params(blocks: Sequence[RowBlock]) -> int:
    return sum(block.num_params for block in blocks)


def _measured(
    blocks: tuple[RowBlock, ...], reader: SourceReader, frames: ZstdFrames, looked_at: int
) -> Measured:
    first, params = blocks[0], _params(blocks)
    if not params:
        return _as_they_are(blocks)
    spec = _looked_at_as(first.spec)
    values = max(_LEAST_VALUES, min(_MOST_VALUES, _VALUES * params // looked_at))
    if spec.is_quantized and spec.quant_axis < 0 and params <= _WHOLE_VALUES:
        values = params
    rows, columns = sum(block.rows for block in blocks), first.columns
    as_they_lie = bool(spec.row_exponent)  # steps that follow from a row's index
    wanted = [*sampled_runs(rows, max(1, values // max(1, columns)), in_runs=as_they_lie)]
    found = reader.read([(first.read_as, start * columns, stop * columns) for start, stop in wanted])
    runs = (Run(start, stop - start, raw) for (start, stop), raw in zip(wanted, found, strict=True))
    sample = LayerSample(blocks, tuple(runs))
    return measure(sample if spec.keeps_codes or as_they_lie else sample.joined(), spec, frames)


def _looked_at_as(spec: QuantSpec) -> QuantSpec:
    """`spec` with a method that needs nothing but the values, and gives as many and as evenly spread codes."""
    if spec.method in ("gptq", "counted"):
        return replace(spec, method="size" if spec.step else "mse")
    return spec


def _mean(found: Sequence[Measured], blocks: Sequence[RowBlock]) -> Measured:
    """The mean of measured layers of a kind, for one layer of it."""

    def mean(sizes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return tuple(round(sum(of_block) / len(found)) for of_block in zip(*sizes, strict=True))

    return replace(
        found[0],
        spec=blocks[0].spec,
        data_nbytes=mean([one.data_nbytes for one in found]),
        scales_nbytes=mean([one.scales_nbytes for one in found]),
        zero_points_nbytes=mean([one.zero_points_nbytes for one in found]),
        too_wide=any(one.too_wide for one in found),
    )


def _as_they_are(blocks: Sequence[RowBlock], too_wide: Set[str] = frozenset()) -> Measured:
    """Sizes before compression. too_wide: layers that fp16 cannot hold."""
    stays = blocks[0].layer.name in too_wide
    sizes = tuple(block.source_nbytes if stays else expected_nbytes(block) for block in blocks)
    none = (0,) * len(blocks)
    return Measured(blocks[0].spec, 0.0, ErrorSums(), 0.0, sizes, none, none, stays)


def _beside(plan: Plan, sizes: Mapping[str, Measured]) -> int:
    """Bytes of the parts besides values, from laying out the beginnings of some parts, and half of each beginning."""
    if not plan.shards:
        return 0
    last = len(plan.shards) - 1
    count = min(_FRAMED_SHARDS, len(plan.shards))
    shards = [plan.shards[round(index * last / max(1, count - 1))] for index in range(count)]
    begun = [_beginning(shard) for shard in shards]
    halves = [replace(shard, blocks=shard.blocks[: -(-len(shard.blocks) // 2)]) for shard in begun]
    (of_all, rows), (of_half, half_rows) = (
        (_laid_out(plan, some, sizes), sum(len(shard.blocks) for shard in some)) for some in (begun, halves)
    )
    each = (of_all - of_half) / (rows - half_rows) if rows > half_rows else 0.0
    a_part = (of_all - each * rows) / len(shards)
    return round(a_part * len(plan.shards) + each * sum(len(shard.blocks) for shard in plan.shards))


def _beginning(shard: Shard) -> Shard:
    taken, blocks = 0, list[RowBlock]()
    for block in shard.blocks:
        taken += expected_nbytes(block)
        if blocks and taken > _FRAMED_NBYTES:
            break
        blocks.append(block)
    return replace(shard, blocks=tuple(blocks))


def _laid_out(plan: Plan, shards: Sequence[Shard], sizes: Mapping[str, Measured]) -> int:
    """Bytes of the parts of these shards, without their values."""
    values = sum(_nbytes_of(indexed, sizes) for indexed in _indexed(shards))
    return parts_nbytes(replace(plan, shards=tuple(shards)), sizes) - values


def _indexed(shards: Sequence[Shard]) -> Iterator[tuple[str, int]]:
    """(layer, index of the block among that layer's blocks here) of each block."""
    seen: dict[str, int] = {}
    for block in (block for shard in shards for block in shard.blocks):
        name = block.layer.name
        seen[name] = seen.get(name, -1) + 1
        yield name, seen[name]


def _nbytes_of(indexed: tuple[str, int], sizes: Mapping[str, Measured]) -> int:
    name, index = indexed
    found = sizes[name]
    return found.data_nbytes[index] + found.scales_nbytes[index] + found.zero_points_nbytes[index]
