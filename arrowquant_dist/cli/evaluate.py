"""`arrowquant evaluate`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from arrowquant_dist.cli.options import (
    ColumnOption,
    FinishedArgument,
    JsonOption,
    LogFormatOption,
    OriginalArgument,
    QuietOption,
    StorageConfigOption,
)
from arrowquant_dist.cli.outcome import outcome, print_json
from arrowquant_dist.cli.telling import LogFormat, Telling

if TYPE_CHECKING:
    from arrowquant_dist.report.evaluation import Evaluation

_MEMORY_NBYTES = 2 << 30  # memory for reading, in addition to the models


def evaluate(
    model: OriginalArgument,
    target: FinishedArgument,
    *,
    texts: Annotated[
        str,
        typer.Option(
            help="A .txt, .jsonl or .parquet file or URL; builtin, builtin:held-back: texts in the package.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    column: ColumnOption = None,
    config: StorageConfigOption = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Compare a dataset's outputs with the original model's.

    Both get the same texts; what is compared is embeddings, or the next tokens of causal models. The result is also
    written to report/evaluation.json and .md in TARGET.
    """
    telling = Telling(quiet, log_format)
    with outcome(as_json=as_json, telling=telling):
        found = _evaluate(model, target, texts, column, config, telling)
        if as_json:
            print_json(found.to_dict())
            return
        from arrowquant_dist.report.evaluated import evaluation_table
        from arrowquant_dist.report.terminal import print_table

        print_table(sys.stdout, evaluation_table(found))


def _evaluate(
    model: str, target: str, texts: str, column: str | None, config: str | None, telling: Telling
) -> Evaluation:
    from arrowquant_dist.config import RunConfig, load_config
    from arrowquant_dist.evaluation.tracked import evaluate_tracked
    from arrowquant_dist.texts import read_texts

    run = RunConfig() if config is None else load_config(config)[1]
    found = read_texts(texts, column, run.source_storage)
    storages = (run.source_storage, run.target_storage)
    with redirect_stdout(sys.stderr):  # what libraries print; stdout is for the result alone
        from arrowquant_dist.progress.steps import shown_steps

        with shown_steps(sys.stderr, "evaluate", telling.form(sys.stderr)) as show:
            return evaluate_tracked(model, target, found, storages, _MEMORY_NBYTES, show)
