"""`min_quality` with `texts`: the fewest bytes at which the outputs for the texts are still good enough.

Steps of method `size` are tried, at most _TRIES of them, one at a time. Each makes a dataset in a temporary folder,
which `evaluate` measures as a user would, and which is removed before the next. Losses are nearly a power of the step,
so the secant method on the logarithms needs four or five tries.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from arrowquant_dist.config import QuantizationConfig, RunConfig, Storage, check_config, check_run
from arrowquant_dist.config.quality import Quality, quality
from arrowquant_dist.driver import chosen_before, opened_choice, quantize
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.evaluation.run import run_evaluation
from arrowquant_dist.location import Location
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.steps import shown_steps
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.sizing import FOUND, STEPS, Tried, largest_within
from arrowquant_dist.storage.temporary import temporary_folder
from arrowquant_dist.texts import Texts, read_texts
from arrowquant_dist.texts.steps import StepCallback

_TRIES = 10
_NEAR = 0.03  # part of the allowed loss that may be left unused
_FIRST_STEP = 0.5
_MEMORY_NBYTES = 2 << 30  # for reading, besides the models
_Found = tuple[QuantizationConfig, float]  # a table of overrides and its loss


def choose_by_texts(
    source: Location,
    config: QuantizationConfig,
    run: RunConfig | None = None,
    target: Location | None = None,
    *,
    progress: StepCallback | bool | None = True,
) -> QuantizationConfig:
    """Finds the smallest size that keeps a quality, measured with texts, and returns the config to quantize with: it
    has an override for each layer, instead of min_quality and texts.

    source: the source, as for `quantize`.
    config: a config that has min_quality and texts.
    run: workers, sizes and storage options; default: RunConfig().
    target: where the dataset will go; an earlier choice there for the same config and texts is returned again.
    progress: as for `evaluate`, for each step that is tried.

    Raises InvalidConfig for a min_quality that this kind of model does not have (a perplexity for encoders, a cosine
    for causal models); if no size has the quality, with the best that was found; and what `quantize` and `evaluate`
    raise.
    """
    check_config(config)
    run = RunConfig() if run is None else run
    check_run(run)
    if config.min_quality is None or config.texts is None:
        raise InvalidConfig("choosing by texts needs min_quality and texts; the config lacks one of them")
    wanted = quality(config.min_quality)
    texts = read_texts(config.texts, None, run.source_storage)
    asked = config.to_dict() | {"texts_digest": texts.digest}
    earlier = chosen_before(target, config, asked, run) if target is not None else None
    if earlier is not None:
        return earlier
    allowed = 1.0 - wanted.cosine if wanted.cosine is not None else wanted.excess or 0.0

    with (
        told_to(progress, shown_steps, "quantize") as told,
        opened_choice(source, config, run) as table_at,
    ):

        def at(step: float) -> Tried[_Found]:
            table = table_at(step)
            loss = _loss(_evaluated(source, table, texts, run, told), wanted)
            return Tried(step, loss - allowed, (table, loss))

        found, beyond = largest_within(at, _FIRST_STEP, STEPS, _NEAR * allowed, falls=False, tries=_TRIES)
    if found is None:
        least = beyond.found[1] if beyond is not None else math.nan
        best = f"{1.0 - least:.6f}" if wanted.cosine is not None else f"{100 * least:.4g}%"
        message = (
            f"min_quality: no size reaches {config.min_quality} with these texts; the best found is {best}"
        )
        raise InvalidConfig(message, uri=texts.name)
    table, loss = found.found
    figure: Any = 1.0 - loss if wanted.cosine is not None else f"{100 * loss:.4g}%"
    return replace(table, chosen_for={**asked, FOUND: figure})


def _evaluated(
    source: Location, table: QuantizationConfig, texts: Texts, run: RunConfig, progress: StepCallback | None
) -> Evaluation:
    here = replace(run, engine="inline", address=None, overwrite=False, repair=False)
    options = run.source_storage.options  # the target here is a local folder, unlike the run's own
    here = replace(here, storage_options={}, source_storage_options=options, target_storage_options={})
    with temporary_folder() as folder:
        place = str(folder / "tried")
        quantize(source, place, table, here)
        return run_evaluation(
            source, place, texts, (run.source_storage, Storage({})), _MEMORY_NBYTES, progress
        )


def _loss(found: Evaluation, wanted: Quality) -> float:
    """1 - cosine, or the excess of perplexity. Raises InvalidConfig where the model has no such figure."""
    if found.embeddings is not None and wanted.cosine is not None:
        return 1.0 - found.embeddings.cosine_mean
    if found.next_tokens is not None and wanted.excess is not None:
        return found.next_tokens.excess
    has, say = (
        ("embeddings", "a cosine, such as 0.98")
        if found.embeddings
        else ("next tokens", "a percentage, such as 5%")
    )
    raise InvalidConfig(f"min_quality: {found.architecture} is compared by its {has}; use {say}")
