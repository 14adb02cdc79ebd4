"""`arrowquant export`."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arrowquant_dist.cli.options import (
    AddressOption,
    EngineOption,
    JsonOption,
    LogFormatOption,
    QuietOption,
    StorageConfigOption,
    WorkersOption,
    complete_from,
)
from arrowquant_dist.cli.outcome import STOPPED, outcome, print_json
from arrowquant_dist.cli.telling import LogFormat, Telling
from arrowquant_dist.errors import RESUMES, counted

if TYPE_CHECKING:
    from arrowquant_dist.config import RunConfig
    from arrowquant_dist.export import Exported, ExportOptions

_FORMATS = ("compressed-tensors", "gguf", "safetensors", "v1")


def export(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A finished dataset.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where the files go: a new directory or a URL.")],
    *,
    output_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="The format to write.",
            metavar="|".join(_FORMATS),
            autocompletion=complete_from(_FORMATS),
            show_default=False,
        ),
    ],
    activations: Annotated[
        str | None,
        typer.Option(
            help="For compressed-tensors: quantize activations to int8 as well when the model runs (W8A8).",
            metavar="int8",
        ),
    ] = None,
    requantize: Annotated[
        bool,
        typer.Option(
            "--requantize",
            help="Convert layers that the format cannot hold to the nearest form that it can, instead of "
            "refusing them.",
        ),
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            help="The original weights, for --requantize; default: the decoded values of TARGET.",
            metavar="CHECKPOINT",
        ),
    ] = None,
    config: StorageConfigOption = None,
    max_file_bytes: Annotated[
        str | None, typer.Option(help="Largest size of a weight file; default: 1GiB.", metavar="SIZE")
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="Memory for weights, shared by all workers of a process; default: 1GiB.", metavar="SIZE"
        ),
    ] = None,
    engine: EngineOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written. Writes nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier export left, and no other files.")
    ] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Write a dataset in a format that other programs load.

    The same command again resumes an interrupted export.
    """
    telling = Telling(quiet, log_format)
    with outcome(as_json=as_json, if_interrupted=STOPPED if dry_run else RESUMES, telling=telling):
        from arrowquant_dist.export.options import ExportOptions

        given: dict[str, Any] = {"format": output_format, "activations": activations, "source": source}
        given |= {"max_file_bytes": max_file_bytes, "memory_budget": memory_budget}
        options = ExportOptions(
            requantize=requantize,
            overwrite=overwrite,
            **{name: value for name, value in given.items() if value is not None},
        )
        run = _run_config(config).replace(engine=engine, address=address, workers=workers)
        if dry_run:
            _show_plan(target, out, options, run, as_json=as_json)
        else:
            _show_outcome(_run(target, out, options, run, telling), as_json=as_json)


def _run_config(config: str | None) -> RunConfig:
    from arrowquant_dist.config import RunConfig, load_config

    return load_config(config)[1] if config is not None else RunConfig()


def _run(target: str, out: str, options: ExportOptions, run: RunConfig, telling: Telling) -> Exported:
    from arrowquant_dist.engine.log import shown_shards
    from arrowquant_dist.export import export_dataset

    told = nullcontext() if telling.quiet else shown_shards(sys.stderr)
    with told, redirect_stdout(sys.stderr):  # what Ray prints; stdout is for the result alone
        from arrowquant_dist.progress.runs import shown_progress

        with shown_progress(sys.stderr, "export", telling.form(sys.stderr)) as show:
            return export_dataset(target, out, options, run, progress=show)


def _show_outcome(result: Exported, *, as_json: bool) -> None:
    record = result.record
    if as_json:
        done: dict[str, Any] = {"out": result.out, "already_finished": result.already_finished}
        print_json({**done, "export": record.to_dict()})
        return
    from arrowquant_dist.report import text
    from arrowquant_dist.report.terminal import print_text

    for note in record.notes:
        print_text(sys.stdout, f"note: {note}")
    nbytes = text.nbytes(sum(file.nbytes for file in record.files))
    files = f"{counted(len(record.files), 'file')}, {nbytes}"
    said = f"{result.out} is finished already" if result.already_finished else f"written to {result.out}"
    print_text(sys.stdout, f"{said}: {record.format}, {files}")


def _show_plan(target: str, out: str, options: ExportOptions, run: RunConfig, *, as_json: bool) -> None:
    from arrowquant_dist.export import plan_export
    from arrowquant_dist.export.summary import summarize_export

    summary = summarize_export(plan_export(target, out, options, run))
    if as_json:
        print_json(summary.to_dict())
        return
    from arrowquant_dist.report.terminal import print_table, print_text

    for table in summary.tables():
        print_table(sys.stdout, table)
    for note in summary.notes:
        print_text(sys.stdout, f"note: {note}")
