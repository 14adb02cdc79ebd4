"""How a command ends: results on stdout, errors as one line on stderr (or JSON), and the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from arrowquant_dist.cli.streams import say
from arrowquant_dist.cli.telling import PLAIN, LogFormat, Telling
from arrowquant_dist.errors import ArrowQuantError, Interrupted
from arrowquant_dist.progress.forms import json_line

STOPPED = "interrupted"
JSON_VERSION = (
    1  # of all documents on stdout: fields are added under it, and it goes up when one means something else
)


@contextmanager
def outcome(*, as_json: bool, if_interrupted: str = STOPPED, telling: Telling = PLAIN) -> Iterator[None]:
    """Maps what a command raises to output and exit code. Errors of other kinds keep their traceback.

    A reader that goes away (BrokenPipeError) is typer's to handle: it ends quietly, with 1. Other streams that cannot
    be written are main's (cli/streams.py).
    """
    try:
        yield
        sys.stdout.flush()  # a reader that went away shows here, not at the interpreter's exit
    except ArrowQuantError as error:
        _tell(error, telling, as_json=as_json)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        interrupted = Interrupted(if_interrupted)
        _tell(interrupted, telling, as_json=as_json)
        raise typer.Exit(interrupted.exit_code) from error


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON document on stdout, with its version, ASCII only: no name in it reaches a terminal raw."""
    typer.echo(json.dumps({"schema_version": JSON_VERSION, **values}, indent=2, allow_nan=False))


def _tell(error: ArrowQuantError, telling: Telling, *, as_json: bool) -> None:
    if as_json:
        print_json({"error": error.to_dict()})
    elif telling.log_format is LogFormat.JSON:
        say(json_line("error", error.to_dict()))
    else:
        from arrowquant_dist.report.text import folded, printable, terminal_width

        line = f"error: {printable(' '.join(str(error).split()))}"
        is_seen = sys.stderr.isatty()
        say("\n".join(folded(line, terminal_width(sys.stderr))) if is_seen else line)
