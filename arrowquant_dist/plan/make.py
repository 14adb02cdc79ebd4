"""Makes the plan from a checkpoint, a config and run settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arrowquant_dist.checkpoint.collector import collector_paused
from arrowquant_dist.checkpoint.source_codes import SourceCodes
from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.code_digest import code_digest
from arrowquant_dist.config import QuantizationConfig, RunConfig, SpecResolver
from arrowquant_dist.errors import InvalidConfig, listed
from arrowquant_dist.plan.blocks import Plan, RowBlock
from arrowquant_dist.plan.check import check_checkpoint, check_expansion
from arrowquant_dist.plan.codes import codes_notes
from arrowquant_dist.plan.cut import MAX_BLOCKS, cut_layer, group_shards
from arrowquant_dist.plan.fingerprint import fingerprint, source_files
from arrowquant_dist.plan.side_inputs import (
    SideInputs,
    SideTensors,
    described,
    described_source,
    rows_together,
)
from arrowquant_dist.plan.unscaled import check_unscaled

_LONG_ROW = 64  # columns from which a 3-D layer is more likely fused experts than a convolution
_NO_SIDE_INPUTS: SideInputs = {}
_NO_CODES: SourceCodes = {}


@collector_paused()
def make_plan(
    checkpoint: Checkpoint,
    config: QuantizationConfig,
    run: RunConfig,
    side_inputs: SideInputs = _NO_SIDE_INPUTS,
    codes: SourceCodes = _NO_CODES,
) -> Plan:
    """Makes the plan: everything about a run, checked and fixed before the first weight is read.

    Layers are taken in the order of their bytes in the source, so that a shard reads neighbours. The same source and
    settings give the same plan on any machine, whatever the engine and its workers. side_inputs: what
    `open_side_inputs` returned for the config. codes: what `find_codes` returned, if the config keeps codes.

    Raises InvalidCheckpoint for an inconsistent layer table, InvalidConfig for a config that doesn't fit it.
    """
    check_checkpoint(checkpoint)
    check_unscaled(checkpoint, config.unscaled_float8)
    layers = in_storage_order(checkpoint)
    blocks, notes = _resolve_and_cut(layers, checkpoint.kept, config, run, SideTensors(side_inputs), codes)
    notes = [*codes_notes(checkpoint.notes, blocks, codes), *notes]
    return plan_of_blocks(checkpoint, blocks, config.to_dict(), run, side_inputs, notes)


def in_storage_order(checkpoint: Checkpoint) -> list[Layer]:
    """The layers in the order of their bytes in the source."""
    return sorted(checkpoint.layers, key=lambda layer: (layer.uri, layer.offset))


def plan_of_blocks(
    checkpoint: Checkpoint,
    blocks: Sequence[RowBlock],
    config: Mapping[str, Any],
    run: RunConfig,
    side_inputs: SideInputs,
    notes: Sequence[str],
) -> Plan:
    """The plan for all layers' row blocks, in the order of the source. config: what was asked for, as plain values."""
    check_expansion(checkpoint, run.max_expansion)
    shards = group_shards(blocks, run.shard_bytes)
    source, side, code = described_source(checkpoint), described(side_inputs), code_digest()
    hashed = (checkpoint.aliases, source_files(source), run.compression, code, side)
    return Plan(
        shards=shards,
        aliases=dict(checkpoint.aliases),
        source=source,
        config={**config, "run": run.byte_settings()},
        compression=run.compression,
        fingerprint=fingerprint(shards, *hashed),
        code=code,
        sidecars=tuple(checkpoint.sidecars),
        notes=tuple(notes),
        side_inputs=side,
        left_out=dict(checkpoint.left_out),
    )


def _resolve_and_cut(
    layers: Sequence[Layer],
    kept: Mapping[str, str],
    config: QuantizationConfig,
    run: RunConfig,
    side: SideTensors,
    codes: SourceCodes,
) -> tuple[list[RowBlock], list[str]]:
    """The row blocks of all layers, and the notes. kept: as in Checkpoint."""
    resolver = SpecResolver(config, layers)
    blocks: list[RowBlock] = []
    for layer in layers:
        resolved = resolver.resolve(
            layer.name, layer.shape, layer.dtype, kept.get(layer.name), codes.get(layer.name)
        )
        spec, tensors = side.of(layer, resolved.spec)
        together = rows_together(layer, spec, tensors)
        cut = cut_layer(layer, replace(resolved, spec=spec), run.block_bytes, run.tensor_parallel, together)
        blocks += [replace(block, side_tensors=tensors) for block in cut] if tensors else cut
        if len(blocks) > MAX_BLOCKS:
            raise InvalidConfig(f"the plan has more than {MAX_BLOCKS} row blocks; raise block_bytes")
    resolver.check_matches(layer.name for layer in layers)
    return blocks, [*resolver.notes(), *side.notes(config), *_layout_notes(blocks, run.block_bytes)]


def _layout_notes(blocks: Iterable[RowBlock], block_bytes: int) -> list[str]:
    long_rows: dict[str, Any] = {}
    undivided: dict[str, Any] = {}
    stacked: dict[str, Any] = {}
    for block in blocks:
        layer = block.layer
        if block.source_nbytes > block_bytes:
            (long_rows if block.rows == 1 else undivided).setdefault(layer.name)
        is_stack = len(layer.shape) == 3 and layer.shape[-1] >= _LONG_ROW
        if is_stack and block.spec.is_quantized and block.spec.row_dims == 1:
            stacked.setdefault(layer.name)
    notes = []
    if long_rows:
        reason = "one row is larger than block_bytes, so each row is a block and memory grows with it"
        notes.append(f"{listed(long_rows)}: {reason}")
    if undivided:
        reason = (
            "its rows depend on each other and are larger than block_bytes together, so they are one block "
            "and memory grows with it"
        )
        notes.append(f"{listed(undivided)}: {reason}")
    if stacked:
        reason = (
            "3-D, quantized with one row per index of the first dimension; for fused experts, set row_dims: 2"
        )
        notes.append(f"{listed(stacked)}: {reason}")
    return notes
