"""How a command ends: results on stdout, errors as one line on stderr (or JSON), and the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
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


class ShownExit(int):
    """The exit code of an error that has been shown."""


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
        _tell(error.to_dict(), telling, as_json=as_json)
        raise typer.Exit(ShownExit(error.exit_code)) from error
    except KeyboardInterrupt as error:
        interrupted = Interrupted(if_interrupted)
        _tell(interrupted.to_dict(), telling, as_json=as_json)
        raise typer.Exit(ShownExit(interrupted.exit_code)) from error


def print_json(values: Mapping[str, Any]) -> None:
    """Prints one JSON document with its version, in ASCII, so that no name in it reaches a terminal unescaped."""
    typer.echo(json.dumps({"schema_version": JSON_VERSION, **values}, indent=2, allow_nan=False))


def show_usage_error(error: Any, arguments: Sequence[str]) -> None:
    """Shows an error of a command line that could not be parsed, in the form that it asks for."""
    if type(error).show is not typer.BadParameter.show:  # the help of a command without arguments
        error.show()
        return
    values = {**ArrowQuantError(error.format_message()).to_dict(), "kind": "usage"}
    telling = _telling(arguments)
    if error.ctx is not None and "--json" not in arguments and telling.log_format != LogFormat.JSON:
        say(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n")
    _tell(values, telling, as_json="--json" in arguments)


def show_interrupted(arguments: Sequence[str]) -> None:
    """Shows that the program was interrupted before its command began, in the form that the command line asks for."""
    _tell(Interrupted(STOPPED).to_dict(), _telling(arguments), as_json="--json" in arguments)


def _telling(arguments: Sequence[str]) -> Telling:
    """What a command line that was not parsed asks for: the last value of --log-format, which is a word of its own or
    follows an equals sign."""
    words = "\0".join(arguments).replace("--log-format=", "--log-format\0").split("\0")
    values = [value for option, value in pairwise(words) if option == "--log-format"]
    return Telling(log_format=LogFormat.JSON) if values[-1:] == [LogFormat.JSON] else PLAIN


def _tell(error: Mapping[str, Any], telling: Telling, *, as_json: bool) -> None:
    if as_json:
        print_json({"error": error})
    elif telling.log_format is LogFormat.JSON:
        say(json_line("error", error))
    else:
        from arrowquant_dist.report.text import folded, printable, terminal_width

        line = f"error: {printable(' '.join(error['message'].split()))}"
        is_seen = sys.stderr.isatty()
        say("\n".join(folded(line, terminal_width(sys.stderr))) if is_seen else line)
