"""`arrowquant calibrate`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from arrowquant_dist.cli.options import (
    AddressOption,
    ColumnOption,
    EngineOption,
    JsonOption,
    LogFormatOption,
    QuietOption,
    WorkersOption,
    complete_preset,
)
from arrowquant_dist.cli.outcome import outcome, print_json
from arrowquant_dist.cli.telling import LogFormat, Telling
from arrowquant_dist.errors import counted

if TYPE_CHECKING:
    from arrowquant_dist.calibration import Calibration


def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model to be quantized: a folder, a URL, or minilm.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where the statistics go: a folder or a URL.")],
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
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Preset or YAML file that the model will be quantized with. Each layer then sees what the quantized "
            "layers before it produce.",
            metavar="CONFIG",
            autocompletion=complete_preset,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="YAML file whose run section has the storage options; default: that of --quantize.",
            metavar="FILE",
        ),
    ] = None,
    memory_budget: Annotated[
        str,
        typer.Option(
            help="Memory of one process for weights, texts and sums, in addition to the libraries.",
            metavar="SIZE",
        ),
    ] = "2GiB",
    engine: EngineOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another calibration's statistics.")
    ] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Run texts through a model and record what its layers see.

    `quantize --hessians` uses these statistics. The same command again resumes an interrupted calibration.
    """
    telling = Telling(quiet, log_format)
    with outcome(as_json=as_json, telling=telling):
        found = _calibrate(
            (model, out, texts, column),
            (quantize, config),
            memory_budget,
            {"engine": engine, "address": address, "workers": workers, "overwrite": overwrite or None},
            telling,
        )
        if as_json:
            layers = [
                {"layer_name": one.name, "tokens": one.tokens, "parts": one.parts} for one in found.layers
            ]
            print_json({"out": found.out, **found.to_dict(), "layers": layers})
            return
        _print(found)


def _calibrate(
    places: tuple[str, str, str, str | None],
    files: tuple[str | None, str | None],
    memory_budget: str,
    options: dict[str, object],
    telling: Telling,
) -> Calibration:
    from arrowquant_dist.calibration.run import run_calibration
    from arrowquant_dist.config import RunConfig, load_config, parse_size
    from arrowquant_dist.texts import read_texts

    model, out, texts, column = places
    by, of_run = files
    # The statistics that the config's method needs do not exist yet: they are the ones that this command writes.
    quantization, run = (None, RunConfig()) if by is None else load_config(by, instead={"hessians": out})
    if of_run is not None:
        run = load_config(of_run)[1]
    run = run.replace(**options)
    limit = parse_size(memory_budget, "memory-budget")
    found = read_texts(texts, column, run.source_storage)
    with redirect_stdout(sys.stderr):  # what libraries print; stdout is for the result alone
        from arrowquant_dist.progress.steps import shown_steps

        with shown_steps(sys.stderr, "calibrate", telling.form(sys.stderr)) as show:
            return run_calibration(model, out, found, quantization, limit, run, show)


def _print(found: Calibration) -> None:
    from arrowquant_dist.report.terminal import print_text

    texts = found.texts
    known = len(found.layers) - len(found.unseen) - len(found.unfit) - len(found.strange)
    path = ", each with quantized layers before it" if found.sequential else ""
    print_text(
        sys.stdout,
        f"{counted(known, 'layer')}{path}: {counted(texts['count'], 'text')}, {counted(texts['tokens'], 'token')}",
    )
    for note in found.notes:
        print_text(sys.stdout, f"note: {note}")
    print_text(sys.stdout, f"written to {found.out}; next: `arrowquant quantize` with --hessians {found.out}")
