"""The plan of a dataset whose codes, scales and values were found by training: a checkpoint beside the source holds
them, and the workers write and measure them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import ResolvedLayer, RunConfig
from arrowquant_dist.plan.blocks import Plan
from arrowquant_dist.plan.check import check_checkpoint
from arrowquant_dist.plan.cut import cut_layer
from arrowquant_dist.plan.make import in_storage_order, plan_of_blocks

SIDE_INPUT = "trained"  # its name in plans
_PARTS = ("scales", "zero_points", "codes", "values")


@dataclass(frozen=True, slots=True)
class Trained:
    """What has to be stored for each layer.

    resolved: {layer's name in the source: how it is stored}.
    parts: a checkpoint with `{layer}.scales`, `.zero_points` and `.codes`, [rows, …], for layers whose spec is_trained
        (scales [1, 1] if there is only one), and `.values`, [rows, columns] in the layer's dtype, for kept ones.
    config: of the dataset that was trained, and how it was trained.
    notes: remarks for people.
    """

    resolved: Mapping[str, ResolvedLayer]
    parts: Checkpoint
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def trained_plan(checkpoint: Checkpoint, trained: Trained, run: RunConfig) -> Plan:
    """The plan for storing `trained`, which has every layer of the checkpoint. Raises as `make_plan` does."""
    check_checkpoint(checkpoint)
    stored = {layer.name: layer for layer in trained.parts.layers}
    blocks = []
    for layer in in_storage_order(checkpoint):
        resolved = trained.resolved[layer.name]
        cut = cut_layer(layer, resolved, run.block_bytes, run.tensor_parallel)
        names = [f"{layer.name}.{part}" for part in _PARTS] if resolved.spec.is_trained else []
        side = tuple(stored[name] for name in names if name in stored)
        blocks += [replace(block, side_tensors=side) for block in cut]
    notes = [*checkpoint.notes, *trained.notes]
    return plan_of_blocks(checkpoint, blocks, trained.config, run, {SIDE_INPUT: trained.parts}, notes)
