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
    1  # of all documents on stdout: goes up when a field changes its meaning, not when fields are added
)


@contextmanager
def outcome(*, as_json: bool, if_interrupted: str = STOPPED, telling: Telling = PLAIN) -> Iterator[None]:
    """Turns the errors that a command raises into output and an exit code. Errors that are not ArrowQuantErrors keep
    their traceback.

    as_json: print errors as JSON. if_interrupted: message after Ctrl-C. telling: form of errors on stderr. If the
    reader of stdout goes away (BrokenPipeError), typer ends the program quietly with exit code 1. Other streams that
    cannot be written are handled in main (cli/streams.py).
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
    """Prints one JSON document with its version, in ASCII, so that no name in it reaches a terminal unescaped."""
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
