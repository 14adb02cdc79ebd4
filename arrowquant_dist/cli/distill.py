"""`arrowquant distill`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from arrowquant_dist.cli.options import (
    AddressOption,
    ColumnOption,
    FinishedArgument,
    JsonOption,
    LogFormatOption,
    OriginalArgument,
    QuietOption,
)
from arrowquant_dist.cli.outcome import outcome, print_json
from arrowquant_dist.cli.telling import LogFormat, Telling
from arrowquant_dist.errors import counted

if TYPE_CHECKING:
    from arrowquant_dist.distillation import Distilled

_MEMORY_NBYTES = 2 << 30  # memory for reading, and for the original's outputs


def distill(
    model: OriginalArgument,
    target: FinishedArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where the trained dataset is written.")],
    *,
    texts: Annotated[
        str,
        typer.Option(
            help="A .txt, .jsonl or .parquet file or URL; builtin, builtin:more: texts in the package.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    column: ColumnOption = None,
    steps: Annotated[
        int | None, typer.Option(help="Train for at most N steps; default: 400.", metavar="N")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Train for at most so many minutes; default: no limit.", metavar="MINUTES"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed for the order of the texts; default: 0.", metavar="N")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="YAML file whose run section has the storage options and says how to write.", metavar="FILE"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that train together by Ray Train, each on a part of every step; default: this one alone.",
            metavar="N",
        ),
    ] = None,
    address: AddressOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an arrowquant dataset at OUT.")
    ] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Train a dataset against the original model's outputs.

    Trains scales, zero points, codes, norms and biases, and writes a new dataset to OUT.
    """
    telling = Telling(quiet, log_format)
    with outcome(as_json=as_json, telling=telling):
        from arrowquant_dist.config import RunConfig, load_config
        from arrowquant_dist.distillation import DistillSettings
        from arrowquant_dist.distillation.tracked import distill_tracked
        from arrowquant_dist.texts import read_texts

        run = RunConfig() if config is None else load_config(config)[1]
        run = run.replace(workers=workers, address=address, overwrite=overwrite or None)
        settings = DistillSettings.with_given(steps=steps, minutes=minutes, seed=seed)
        found = read_texts(texts, column, run.source_storage)
        with redirect_stdout(sys.stderr):  # what libraries print; stdout is for the result alone
            from arrowquant_dist.progress.training import shown_training

            with shown_training(sys.stderr, "distill", telling.form(sys.stderr)) as show:
                made = distill_tracked(model, target, out, found, settings, _MEMORY_NBYTES, run, show)
        if as_json:
            print_json(made.to_dict())
            return
        _print(made)


def _print(made: Distilled) -> None:
    from arrowquant_dist.report.terminal import print_text

    _print_result(made)
    for note in made.notes:
        print_text(sys.stdout, f"note: {note}")


def _print_result(made: Distilled) -> None:
    from arrowquant_dist.report.terminal import print_text

    if made.already_finished:
        print_text(sys.stdout, f"{made.target} is finished already")
        return
    before, after = made.losses[0], made.losses[made.best]
    steps = counted(made.best, "step")
    print_text(
        sys.stdout,
        f"written to {made.target}: loss of held-back texts {before:.4f} before, {after:.4f} after {steps}; "
        "next, compare the outputs by `arrowquant evaluate`",
    )
    if made.failed_at is not None:
        steps = counted(made.failed_at, "step")
        print_text(
            sys.stdout, f"warning: training ended after {steps}, where the loss became NaN or infinite"
        )
