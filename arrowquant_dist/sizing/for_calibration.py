"""A config with a size as a sequential calibration quantizes by it: the table is chosen before statistics are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import LayerOverride, QuantizationConfig, RunConfig
from arrowquant_dist.config.size import size_limit
from arrowquant_dist.plan import make_plan
from arrowquant_dist.sizing.candidates import ON_TARGET
from arrowquant_dist.sizing.run import choose_size


def table_for_calibration(
    checkpoint: Checkpoint,
    config: QuantizationConfig,
    run: RunConfig,
    hessians: str,
    relative_steps: Mapping[str, float],
) -> QuantizationConfig:
    """The choice for config.size by method `size`, with gptq at the same steps for all layers but embeddings, whose
    steps are those that go with it. hessians: where the statistics will be. relative_steps: as of choose_size. Raises
    what choose_size raises."""
    plan = make_plan(checkpoint, config.without_hessians(), run)
    nbytes = size_limit(config.size).nbytes_of(sum(block.num_params for block in plan.blocks))
    chosen = choose_size(plan, checkpoint, config, nbytes, run, ON_TARGET, relative_steps).config
    own = len(config.overrides)
    overrides = (*chosen.overrides[:own], *map(_on_target, chosen.overrides[own:]))
    return replace(chosen, hessians=hessians, overrides=overrides)


def _on_target(override: LayerOverride) -> LayerOverride:
    is_matrix = override.method == "size" and override.row_exponent is None
    return replace(override, method="gptq") if is_matrix else override
