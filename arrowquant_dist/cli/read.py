"""`arrowquant inspect`, `verify` and `report`: the commands that change nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arrowquant_dist.cli.options import JsonOption, LogFormatOption, QuietOption, complete_from
from arrowquant_dist.cli.outcome import outcome, print_json
from arrowquant_dist.cli.telling import LogFormat, Telling
from arrowquant_dist.errors import counted

if TYPE_CHECKING:
    from arrowquant_dist.config import Storage
    from arrowquant_dist.report.reported import Reported
    from arrowquant_dist.verify import VerifyReport

_SHOWN_PROBLEMS = 100
LAYER_ORDERS = ("source", "name", "params", "size", "stored")
_CONFIG = typer.Option(help="YAML file whose run section has the storage options.", metavar="FILE")


def inspect(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A checkpoint or a dataset.")],
    *,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Only layers whose name matches a glob, contains a word, or matches a /regex/. May be repeated; "
            "default: all.",
            metavar="GLOB",
        ),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            help="Order: as in the source, by name, or largest first.",
            metavar="|".join(LAYER_ORDERS),
            autocompletion=complete_from(LAYER_ORDERS),
        ),
    ] = "source",
    limit: Annotated[
        int | None,
        typer.Option(help="List only the first N layers; default: all.", metavar="N", min=1),
    ] = None,
    config: Annotated[str | None, _CONFIG] = None,
    as_json: JsonOption = False,
) -> None:
    """List the layers of a checkpoint or dataset, with sizes.

    Reads only headers.
    """
    with outcome(as_json=as_json):
        from arrowquant_dist.config.checks import check_choice
        from arrowquant_dist.report.contents import chosen, layers_table, read_contents, totals_table
        from arrowquant_dist.report.terminal import print_table

        check_choice("sort", sort, LAYER_ORDERS)
        contents = chosen(read_contents(uri, _storage(config)), tuple(only or ()), sort, limit)
        if as_json:
            print_json(contents.to_dict())
        else:
            print_table(sys.stdout, layers_table(contents))
            print_table(sys.stdout, totals_table(contents))


def verify(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A finished dataset, or Parquet files of one.")
    ],
    *,
    config: Annotated[str | None, _CONFIG] = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Check every checksum of a dataset, and that nothing is missing.

    Lists what is wrong, with exit code 1. The dataset is read three times: as files, by the byte ranges of each layer,
    and as Parquet.
    """
    telling = Telling(quiet, log_format)
    with outcome(as_json=as_json, telling=telling):
        found = _verify(target, _storage(config), telling)
        if as_json:
            print_json(found.to_dict())
        else:
            _show_findings(found)
        sys.stdout.flush()
        if not found.is_sound:
            raise typer.Exit(1)


def report(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A finished dataset.")],
    others: Annotated[
        list[str] | None, typer.Argument(metavar="OTHER", help="More targets, after --compare.", hidden=True)
    ] = None,
    *,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare TARGET with the targets that follow, side by side.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a self-contained HTML page instead.", metavar="FILE")
    ] = None,
    config: Annotated[str | None, _CONFIG] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the report of a dataset.

    Sizes, compression, errors of the weights, and what `evaluate` measured.
    """
    if others and not compare:
        raise typer.BadParameter(f"{others[0]!r}: one target at a time, or several with --compare")
    if compare and not others:
        raise typer.BadParameter("--compare: name the targets to compare this one with")
    with outcome(as_json=as_json):
        from arrowquant_dist.report.load import load_figures, load_reported

        storage = _storage(config)
        uris = [target, *(others or ())]
        load = load_figures if html is None and not compare else load_reported
        datasets = [load(uri, storage) for uri in uris]
        if html is not None:
            _write_page(html, datasets)
            if not as_json:
                typer.echo(f"written to {html}")
        if as_json:
            print_json(_as_json(datasets))
        elif html is None:
            _show(datasets)


def _storage(config: str | None) -> Storage:
    from arrowquant_dist.config import Storage, load_config

    if config is None:
        return Storage()
    return load_config(config)[1].target_storage


def _verify(target: str, storage: Storage, telling: Telling) -> VerifyReport:
    from arrowquant_dist.progress.runs import shown_bytes
    from arrowquant_dist.verify import verify as verify_dataset

    with shown_bytes(sys.stderr, "verify", telling.form(sys.stderr)) as show:
        return verify_dataset(target, storage, progress=show)


def _show_findings(found: VerifyReport) -> None:
    from arrowquant_dist.report import text
    from arrowquant_dist.report.terminal import print_text

    for problem in found.problems[:_SHOWN_PROBLEMS]:
        print_text(sys.stdout, f"{problem.kind}: {problem}")
    more = len(found.problems) - _SHOWN_PROBLEMS
    if more > 0:
        print_text(sys.stdout, f"… and {more} more; --json lists them all")
    checked = (
        f"{counted(found.layers, 'layer')}, {counted(found.rows, 'row')}, "
        f"{counted(found.objects, 'object')}, {text.nbytes(found.nbytes)}"
    )
    verdict = "sound" if found.is_sound else f"NOT sound, {counted(len(found.problems), 'problem')}"
    print_text(sys.stdout, f"{found.uri}: {verdict}; checked {checked}")


def _as_json(datasets: list[Reported]) -> dict[str, Any]:
    """The figures of one dataset's report, or a list with the report of each of several. `evaluations` is left out if
    there are none."""
    evaluated = [
        {"evaluations": [each.to_dict() for each in one.evaluations]} if one.evaluations else {}
        for one in datasets
    ]
    if len(datasets) == 1:
        return {**datasets[0].report.to_dict(), **evaluated[0]}
    pairs = zip(datasets, evaluated, strict=True)
    return {"reports": [{"target": one.name, "report": one.report.to_dict(), **each} for one, each in pairs]}


def _write_page(file: Path, datasets: list[Reported]) -> None:
    from arrowquant_dist.report.compared import Compared
    from arrowquant_dist.report.page import comparison_page, report_page, save_page

    one = datasets[0]
    page = (
        report_page(one.report, one.evaluations, one.layers)
        if len(datasets) == 1
        else comparison_page(Compared(datasets))
    )
    save_page(file, page)


def _show(datasets: list[Reported]) -> None:
    from arrowquant_dist.report.compare import comparison
    from arrowquant_dist.report.compared import Compared
    from arrowquant_dist.report.terminal import print_report, print_table, print_text
    from arrowquant_dist.report.view import WEIGHT_COSINE_NOTE

    if len(datasets) == 1:
        print_report(sys.stdout, datasets[0].report, datasets[0].evaluations)
    else:
        compared = Compared(datasets)
        for sentence in compared.unlike:
            print_text(sys.stdout, sentence)
        print_table(sys.stdout, comparison(compared))
        print_text(sys.stdout, WEIGHT_COSINE_NOTE)
