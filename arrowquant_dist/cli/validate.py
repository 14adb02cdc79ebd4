"""`arrowquant validate`."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
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
)
from arrowquant_dist.cli.outcome import outcome, print_json
from arrowquant_dist.cli.telling import LogFormat, Telling
from arrowquant_dist.errors import RESUMES

if TYPE_CHECKING:
    from arrowquant_dist.validation import Validation
    from arrowquant_dist.validation.run import Asked


def validate(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A checkpoint: a directory, a file, a URL, or `minilm`.")
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Where datasets and report go: a directory or a URL.")
    ],
    others: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG", help="More configs, after --configs.", hidden=True),
    ] = None,
    *,
    configs: Annotated[
        list[str] | None,
        typer.Option(
            "--configs",
            help="Presets and YAML files, one or more; default: int8 int4 int2.",
            metavar="NAME|FILE",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="YAML file of targets; default: the classic targets.", metavar="FILE"),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(
            help="Texts to measure outputs with, as for `evaluate`; default: builtin:held-back.",
            metavar="FILE",
        ),
    ] = None,
    column: ColumnOption = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the page to this file as well.", metavar="FILE")
    ] = None,
    engine: EngineOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make and measure existing datasets again.")
    ] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Quantize a checkpoint with several configs, measure the results, and judge them against targets.

    Writes validation.md, .html and .json to OUT, and removes those of an earlier validation before it begins. Exit code
    1 if a criterion is not met.
    """
    if others and not configs:
        raise typer.BadParameter(f"{others[0]!r}: further configs go after --configs")
    telling = Telling(quiet, log_format)
    with outcome(as_json=as_json, if_interrupted=RESUMES, telling=telling):
        if html is not None:
            _refuse_unwritable(html)
        asked = _asked(source, out, [*(configs or ()), *(others or ())], targets, texts, column)
        changed = {"engine": engine, "address": address, "workers": workers, "overwrite": overwrite or None}
        named = tuple(replace(one, run=one.run.replace(**changed)) for one in asked.configs)
        found = _validated(replace(asked, configs=named), telling)
        if html is not None:
            _write_page(html, found)
        if as_json:
            print_json(found.to_dict())
        else:
            _show(found, out)
        sys.stdout.flush()
        if not found.is_accepted:
            raise typer.Exit(1)


def _asked(
    source: str, out: str, configs: list[str], targets: str | None, texts: str | None, column: str | None
) -> Asked:
    from arrowquant_dist.validation.named_configs import DEFAULT_CONFIGS, named_configs
    from arrowquant_dist.validation.run import Asked
    from arrowquant_dist.validation.targets import read_targets

    named = named_configs(configs or DEFAULT_CONFIGS, None)
    return Asked.of(source, out, named, read_targets(targets), texts, column)


def _validated(asked: Asked, telling: Telling) -> Validation:
    with redirect_stdout(sys.stderr):  # what libraries print; stdout is for the result alone
        from arrowquant_dist.progress.steps import shown_steps
        from arrowquant_dist.validation.tracked import validate_tracked

        with shown_steps(sys.stderr, "validate", telling.form(sys.stderr)) as show:
            return validate_tracked(asked, show)


def _refuse_unwritable(file: Path) -> None:
    """Raises InvalidConfig if the page cannot be written, before hours of work."""
    from arrowquant_dist.errors import InvalidConfig

    if file.is_dir():
        raise InvalidConfig("--html: this is a folder; choose a file", uri=str(file))
    if not os.access(file.parent, os.W_OK | os.X_OK):
        said = "is not writable" if file.parent.is_dir() else "is not a folder"
        raise InvalidConfig(f"--html: {file.parent} {said}; choose another file", uri=str(file))


def _write_page(file: Path, found: Validation) -> None:
    from arrowquant_dist.report.page import document_page, save_page
    from arrowquant_dist.validation.document import validation_document

    save_page(file, document_page(validation_document(found)))


def _show(found: Validation, out: str) -> None:
    """Prints the summary, the criteria that are not met, and where the report is. out: OUT as it was given; it is
    printed without credentials."""
    from arrowquant_dist.report.terminal import print_table, print_text
    from arrowquant_dist.storage.uris import redact
    from arrowquant_dist.validation.figures import PASSED
    from arrowquant_dist.validation.place import PAGE_PATH
    from arrowquant_dist.validation.tables import summary
    from arrowquant_dist.validation.tracked import TRACKING_NOTE

    print_table(sys.stdout, summary(found))
    for one in found.criteria:
        if one.status != PASSED:
            of = f" of {one.config}" if one.config else ""
            why = f": {one.said}" if one.said else ""
            said = f"{one.label}{of}: {one.result}; the target is {one.target}{why}"
            print_text(sys.stdout, f"{one.status}: {said}")
    for reason in dict.fromkeys(one.no_evaluation for one in found.datasets if one.evaluation is None):
        print_text(sys.stdout, f"note: outputs were not measured: {reason}")
    met = sum(one.status == PASSED for one in found.criteria)
    verdict = "every criterion is met" if found.is_accepted else "not accepted"
    print_text(
        sys.stdout, f"{verdict}: {met} of {len(found.criteria)}; {redact(out).rstrip('/')}/{PAGE_PATH}"
    )
    for note in found.notes:
        if note.name == TRACKING_NOTE:  # the only note that is not in the report's files
            print_text(sys.stdout, f"note: {note.text}")
