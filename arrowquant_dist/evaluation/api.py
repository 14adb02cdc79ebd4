"""evaluate(), for those who call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arrowquant_dist.config import Storage, parse_size
from arrowquant_dist.config.checks import check_options
from arrowquant_dist.evaluation.tracked import evaluate_tracked
from arrowquant_dist.location import Location
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.steps import shown_steps
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.texts import read_texts
from arrowquant_dist.texts.steps import StepCallback


def evaluate(
    model: Location,
    target: Location,
    texts: Location | Sequence[str],
    *,
    column: str | None = None,
    memory_budget: str | int = "2GiB",
    storage_options: Mapping[str, Any] | None = None,
    progress: StepCallback | bool | None = True,
) -> Evaluation:
    """Compares what the model and the dataset at `target` make of texts, and writes it to the dataset's report.

    model: as a source of `quantize`: a folder, a file in its folder, a URL, `minilm`. target: a finished dataset of it.
    texts: a .txt, .jsonl or .parquet file or URL, `builtin`, `builtin:held-back`, or a list of texts (texts/read.py).
    column: of .jsonl and .parquet, `text` where None. memory_budget: for reading, beside the models. storage_options:
    fsspec's, for model, target and texts. progress: True: drawn in a terminal or a notebook, and nowhere else; False:
    not at all; a function: called with each TextsStep.

    Models of sentence-transformers and other encoders of transformers are compared by their embeddings, causal language
    models by their next-token distributions; what each figure is stands in report/evaluation.py. Results do not depend
    on batches, but for rounding. Written are report/evaluation.json and report/evaluation.md, which keep evaluations
    with other texts. A dataset of other weights than the model's, which have the same names, shapes and config, is
    compared all the same, and a note says so.

    Raises InvalidConfig for texts, models of other kinds and small files that differ, ModelMismatch where it is no
    dataset of the model, NotFound, CorruptWeights, StorageError; then nothing is written.
    """
    options = {} if storage_options is None else check_options("storage_options", storage_options)
    storage = Storage(options)
    limit = parse_size(memory_budget, "memory_budget")
    found = read_texts(texts, column, storage)
    with told_to(progress, shown_steps, "evaluate") as told:
        return evaluate_tracked(model, target, found, (storage, storage), limit, told)
