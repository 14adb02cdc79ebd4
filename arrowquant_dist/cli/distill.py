"""`arrowquant distill`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, TextIO

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
from arrowquant_dist.cli.telling import LogFormat, Telling, json_line
from arrowquant_dist.errors import counted

if TYPE_CHECKING:
    from arrowquant_dist.distillation import Distilled
    from arrowquant_dist.distillation.training import OnStep, TrainingProgress

_MEMORY_NBYTES = 2 << 30  # for reading, and for the original's outputs
_INTERVAL_SECONDS = 10.0


def distill(
    model: OriginalArgument,
    target: FinishedArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where the trained dataset is written.")],
    *,
    texts: Annotated[
        str,
        typer.Option(
            help="A .txt, .jsonl or .parquet file or URL; builtin, builtin:more: those of the package.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    column: ColumnOption = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of training, at most; default: 400.", metavar="N")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes of training, at most; default: no limit.", metavar="MINUTES")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of texts; default: 0.", metavar="N")] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="YAML file whose run section says how to write, and to reach the storage.", metavar="FILE"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that train together by Ray Train, each on its part of every step; default: this one alone.",
            metavar="N",
        ),
    ] = None,
    address: AddressOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset of ours at OUT.")] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Train scales, zero points, codes, norms and biases against the original's outputs; writes a dataset to OUT."""
    telling = Telling(quiet, log_format)
    with outcome(as_json=as_json, telling=telling):
        from arrowquant_dist.config import RunConfig, load_config
        from arrowquant_dist.distillation import DistillSettings
        from arrowquant_dist.distillation.run import run_distillation
        from arrowquant_dist.texts import read_texts

        run = RunConfig() if config is None else load_config(config)[1]
        run = run.replace(workers=workers, address=address, overwrite=overwrite or None)
        settings = DistillSettings.with_given(steps=steps, minutes=minutes, seed=seed)
        found = read_texts(texts, column, run.source_storage)
        told = None if quiet else _lines(sys.stderr, telling)
        with redirect_stdout(sys.stderr):  # of libraries; stdout is for the result alone
            made = run_distillation(model, target, out, found, settings, _MEMORY_NBYTES, run, told)
        if as_json:
            print_json(made.to_dict())
            return
        _print(made)


def _lines(out: TextIO, telling: Telling, clock: Callable[[], float] = time.monotonic) -> OnStep:
    """A line at each look at the held-back texts, and every ten seconds."""
    last = clock()

    def tell(progress: TrainingProgress, loss: float) -> None:
        nonlocal last
        if clock() - last < _INTERVAL_SECONDS and not progress.is_done:
            return
        last = clock()
        held_back = progress.losses[max(progress.losses)]
        line = f"distill: step {progress.step} of {progress.steps}, loss {loss:.4f}, of held-back texts {held_back:.4f}"
        if telling.form(out) == "json":
            from arrowquant_dist.reduce.ratios import finite

            values = {"command": "distill", "step": progress.step, "steps": progress.steps}
            line = json_line(
                "progress", {**values, "loss": finite(loss), "held_back_loss": finite(held_back)}
            )
        out.write(f"{line}\n")
        out.flush()

    return tell


def _print(made: Distilled) -> None:
    if made.already_finished:
        typer.echo(f"{made.target} is finished already")
        return
    before, after = made.losses[0], made.losses[made.best]
    steps = counted(made.best, "step")
    typer.echo(
        f"written to {made.target}: loss of held-back texts {before:.4f} before, {after:.4f} after {steps}; "
        "`arrowquant evaluate` says what that means"
    )
    if made.failed_at is not None:
        steps = counted(made.failed_at, "step")
        typer.echo(f"warning: the loss was no number after {steps}, where the training ended")
