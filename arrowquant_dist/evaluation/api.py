"""evaluate(), the public function."""

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
    """Compares the outputs of the model and of the dataset at `target` for the same texts, and adds the result to the
    dataset's report.

    model: the model, as a source of `quantize`: a folder, a file in the model's folder, a URL, or `minilm`.
    target: a finished dataset of that model.
    texts: a .txt, .jsonl or .parquet file or URL, `builtin`, `builtin:held-back`, or a list of texts (texts/read.py).
    column: column or key of the texts in .jsonl and .parquet files; None: `text`.
    memory_budget: memory for reading, in addition to the models.
    storage_options: fsspec's options for model, target and texts.
    progress: True shows progress in a terminal or a notebook, and only there; False shows none; a function is called
        with each TextsStep.

    Sentence-transformers models and other encoders of transformers are compared by their embeddings, causal language
    models by their next-token distributions; report/evaluation.py defines each figure. Batches change results only by
    rounding. report/evaluation.json and report/evaluation.md are written, and keep evaluations with other texts. A
    dataset made from other weights with the same names, shapes and config is compared all the same, and a note says so.

    Raises InvalidConfig for texts, other kinds of models and small files that differ, ModelMismatch if it is not a
    dataset of the model, NotFound, CorruptWeights, StorageError; nothing is written then.
    """
    options = {} if storage_options is None else check_options("storage_options", storage_options)
    storage = Storage(options)
    limit = parse_size(memory_budget, "memory_budget")
    found = read_texts(texts, column, storage)
    with told_to(progress, shown_steps, "evaluate") as told:
        return evaluate_tracked(model, target, found, (storage, storage), limit, told)
