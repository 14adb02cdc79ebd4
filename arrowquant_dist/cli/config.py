"""`arrowquant config`: the presets of the package, and files like them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from arrowquant_dist.cli.options import JsonOption
from arrowquant_dist.cli.outcome import outcome, print_json

config = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@config.command("list")
def list_presets() -> None:
    """List the presets: what `--config NAME` takes, and what each is for."""
    with outcome(as_json=False):
        from arrowquant_dist.config import presets
        from arrowquant_dist.report.terminal import print_text

        for name, summary in presets().items():
            print_text(sys.stdout, f"{name}: {summary}")


@config.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="PRESET", help="Of `arrowquant config list`.")],
) -> None:
    """Print a preset with its comments: the file to begin one's own with."""
    with outcome(as_json=False):
        from arrowquant_dist.config import preset_file

        sys.stdout.write(preset_file(name).read_text(encoding="utf-8"))


@config.command("check")
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, a URL, or a preset.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say whether a config is right, and what it comes to with all defaults.

    What is wrong is named with its key and line, and the exit code is 2.
    """
    with outcome(as_json=as_json):
        from arrowquant_dist.config import load_config
        from arrowquant_dist.config.settled import settled

        quantization, run = load_config(file)
        values = settled(quantization, run)
        if as_json:
            print_json({"config_file": file, "config": values})
            return
        import yaml

        from arrowquant_dist.report.terminal import print_text

        print_text(sys.stdout, f"{file} is right, and comes to:")
        sys.stdout.write(
            yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=False)
        )
