"""The program `arrowquant` and its commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from arrowquant_dist.cli.calibrate import calibrate
from arrowquant_dist.cli.config import config
from arrowquant_dist.cli.distill import distill
from arrowquant_dist.cli.evaluate import evaluate
from arrowquant_dist.cli.examples import Command, Group
from arrowquant_dist.cli.export import export
from arrowquant_dist.cli.outcome import ShownExit, show_interrupted, show_usage_error
from arrowquant_dist.cli.quantize import quantize
from arrowquant_dist.cli.read import inspect, report, verify
from arrowquant_dist.cli.streams import (
    end_with_terminal,
    fill_missing,
    give_up_output,
    is_of_output,
    spell_out,
)
from arrowquant_dist.cli.validate import validate
from arrowquant_dist.cli.vllm import vllm
from arrowquant_dist.errors import Interrupted

_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
# The base class of all errors in a command line. typer does not export it.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="arrowquant",
    help="Quantize the weights of models into Parquet datasets, check them, and export them to other programs.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,  # with it, --help would import rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program on `arguments`, by default the process's, and exits: 0 done, 1 failed, 2 bad input, 130
    interrupted."""
    fill_missing()
    end_with_terminal()
    spell_out()
    try:
        try:
            code = _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()  # a full disk shows here, not at the interpreter's exit
    except OSError as error:
        if not is_of_output(error):
            raise
        give_up_output(error)
        raise SystemExit(1) from None
    raise SystemExit(code)


def _run(arguments: list[str]) -> int:
    """Runs a command and returns its exit code. Errors in the command line are shown as all other errors are."""
    try:
        if len(arguments) > 1:
            arguments = _of_shell(*arguments)
        code = app(args=arguments, prog_name="arrowquant", standalone_mode=False) or 0
    except _UsageError as error:
        show_usage_error(error, arguments)
        return int(error.exit_code)
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    except RuntimeError as error:  # how __set_name__ raises it, while modules are imported
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        code = Interrupted.exit_code
    is_shown = isinstance(code, ShownExit)  # not if typer made it of a KeyboardInterrupt
    if code == Interrupted.exit_code and not is_shown:
        show_interrupted(arguments)
    return int(code)


def _of_shell(option: str, *words: str) -> list[str]:
    """The arguments to go on with. typer's completion is that of the current shell, whatever shell is named; so
    `--show-completion SHELL` becomes the request that typer's scripts make, and the other option is refused."""
    if option == "--show-completion":
        if words[0] not in _SHELLS:
            raise typer.BadParameter(f"{option}: must be one of {', '.join(_SHELLS)}, not {words[0]!r}")
        os.environ["_ARROWQUANT_COMPLETE"] = f"source_{words[0]}"
    elif option == "--install-completion":
        raise typer.BadParameter(
            f"{option}: takes no shell, it is for the current one; for another one, save what "
            "`arrowquant --show-completion SHELL` prints"
        )
    return [option, *words]


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            version = metadata.version("arrowquant-dist")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"arrowquant {version}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


for command in (quantize, inspect, verify, report, calibrate, evaluate, distill, validate, export, vllm):
    app.command(cls=Command)(command)
app.add_typer(config, name="config", help="List, show and check configs.")
