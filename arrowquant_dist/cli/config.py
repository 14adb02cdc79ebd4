"""`arrowquant config`: the presets of the package, and files like them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from arrowquant_dist.cli.outcome import outcome

config = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@config.command("list")
def list_presets() -> None:
    """List the presets: what `--config NAME` takes, and what each is for."""
    with outcome(as_json=False):
        from arrowquant_dist.config import preset_names, preset_summary
        from arrowquant_dist.report.terminal import print_text

        for name in preset_names():
            print_text(sys.stdout, f"{name}: {preset_summary(name)}")


@config.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="PRESET", help="Of `arrowquant config list`.")],
) -> None:
    """Print a preset with its comments: the file to begin one's own with."""
    with outcome(as_json=False):
        from arrowquant_dist.config import preset_file

        sys.stdout.write(preset_file(name).read_text(encoding="utf-8"))
