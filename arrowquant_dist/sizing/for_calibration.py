"""The table by which a sequential calibration quantizes a config with a size, chosen before there are statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import LayerOverride, QuantizationConfig, RunConfig
from arrowquant_dist.config.size import size_limit
from arrowquant_dist.plan import make_plan
from arrowquant_dist.sizing.run import KnownArrays, KnownOfTexts, choose_size


def table_for_calibration(
    checkpoint: Checkpoint,
    config: QuantizationConfig,
    run: RunConfig,
    hessians: str,
    relative_steps: Mapping[str, float],
    counts: np.ndarray | None = None,
    sensitivities: KnownArrays | None = None,
) -> QuantizationConfig:
    """The choice for config.size by method `size`, turned into gptq with the same steps for all layers but embeddings.
    Embeddings have the steps that go with it, and their rows are ranked by counts. hessians: where the statistics will
    be. relative_steps, counts, sensitivities: as in KnownOfTexts. Raises what choose_size raises."""
    plan = make_plan(checkpoint, config.without_hessians(), run)
    nbytes = size_limit(config.size).nbytes_of(sum(block.num_params for block in plan.blocks))
    known = KnownOfTexts(relative_steps, counts, sensitivities)
    chosen = choose_size(plan, checkpoint, config, nbytes, run, known).config
    own = len(config.overrides)
    overrides = (*chosen.overrides[:own], *map(_on_target, chosen.overrides[own:]))
    return replace(chosen, hessians=hessians, overrides=overrides)


def _on_target(override: LayerOverride) -> LayerOverride:
    if override.method != "size":
        return override
    return replace(override, method="gptq" if override.row_exponent is None else "counted")
