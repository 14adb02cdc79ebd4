"""distill(), the public function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arrowquant_dist.config import RunConfig, check_run, parse_size
from arrowquant_dist.config.arguments import check_made
from arrowquant_dist.config.checks import check_options
from arrowquant_dist.distillation.result import Distilled
from arrowquant_dist.distillation.settings import DistillSettings
from arrowquant_dist.distillation.tracked import distill_tracked
from arrowquant_dist.distillation.training import OnStep
from arrowquant_dist.location import Location
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.training import shown_training
from arrowquant_dist.texts import read_texts


def distill(
    model: Location,
    target: Location,
    out: Location,
    texts: Location | Sequence[str],
    *,
    settings: DistillSettings | None = None,
    column: str | None = None,
    memory_budget: str | int = "2GiB",
    storage_options: Mapping[str, Any] | None = None,
    run: RunConfig | None = None,
    progress: OnStep | bool | None = True,
) -> Distilled:
    """Trains scales, zero points, codes, norms and biases of the dataset at `target` against the original's outputs,
    and writes another dataset to `out`.

    model: the model that the dataset was made from: a folder, a file in the model's folder, a URL, or `minilm`.
    target: a finished dataset.
    out: an empty place, a folder or a URL.
    texts: a .txt, .jsonl or .parquet file or URL, `builtin`, `builtin:more`, or a list. One of ten, at most 200, is
        held back to judge by; each of the others is used once as it is, and then in new texts made from them
        (recombining.py).
    settings: how to train; default: DistillSettings().
    column: column or key of the texts in .jsonl and .parquet files; None: `text`.
    memory_budget: memory for reading, and as much again for the original's outputs for the held-back texts, in addition
        to both models and what distillation/memory.py counts for each trained value.
    storage_options: fsspec's options for all three places. If run is given, it has its own.
    run: how the dataset is written. With more than one worker, or an address, the workers train with Ray Train, each on
        its slice of every step's texts; except for rounding, that equals the training of one.
    progress: True shows progress in a terminal or a notebook, and only there; False shows none; a function is called
        after each step, in this process.

    Equal versions, settings, workers and torch threads give equal results, unless minutes limit the training. Raises
    InvalidConfig for texts, models and files that do not fit, and models too large for the memory; ModelMismatch,
    TargetConflict if `out` holds anything else, UnquantizableWeights if the loss becomes NaN or infinite before
    anything got better, NotFound, CorruptWeights, StorageError.
    """
    options = {} if storage_options is None else check_options("storage_options", storage_options)
    limit = parse_size(memory_budget, "memory_budget")
    own = RunConfig(storage_options=options) if run is None else run
    check_run(own)
    found = read_texts(texts, column, own.source_storage)
    asked = DistillSettings() if settings is None else settings
    check_made("settings", asked, DistillSettings)
    with told_to(progress, shown_training, "distill") as told:
        return distill_tracked(model, target, out, found, asked, limit, own, told)
