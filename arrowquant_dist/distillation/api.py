"""distill(), for those who call it."""

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
    """Trains scales, zero points, codes, norms and biases of the dataset at `target` and writes another one to `out`.

    model: of which it was made: a folder, a file in its folder, a URL, `minilm`. texts: a .txt, .jsonl or .parquet file
    or URL, `builtin`, `builtin:more`, or a list. One of ten is not trained with, but judged by; of the others each is
    seen once as it is, then new ones that are made of them (recombining.py). column: of .jsonl and .parquet, `text`
    where None. memory_budget: for reading, and as much for what the original makes of the texts held back, beside both
    models and what distillation/memory.py counts for each value that is trained. storage_options: of all three places;
    run, if given, has its own, and says how the dataset is written. With more than one of its workers, or an address,
    they train by Ray Train, each on its slice of every step's texts: but for rounding that is the training of one.
    settings: default DistillSettings(). progress: True: drawn in a terminal or a notebook, and nowhere else; False: not
    at all; a function: called after each step, in this process.

    Results are the same for equal versions, settings, workers and threads of torch, unless minutes bound the training.
    Raises InvalidConfig for texts, models and files that do not fit, and models too large for the memory;
    ModelMismatch, TargetConflict where `out` holds anything else, UnquantizableWeights where the loss is no number
    before anything got better, NotFound, CorruptWeights, StorageError.
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
