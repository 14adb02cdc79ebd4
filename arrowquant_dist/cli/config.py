"""`arrowquant config`: lists and shows the presets of the package, and checks config files."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from arrowquant_dist.cli.examples import Command, Group
from arrowquant_dist.cli.options import JsonOption, complete_preset
from arrowquant_dist.cli.outcome import outcome, print_json

config = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None)


@config.command("list", cls=Command)
def list_presets(*, as_json: JsonOption = False) -> None:
    """List the presets that --config takes by name.

    Prints what each of them is for.
    """
    with outcome(as_json=as_json):
        from arrowquant_dist.config import presets
        from arrowquant_dist.report.terminal import print_table
        from arrowquant_dist.report.view import Table

        found = presets()
        if as_json:
            print_json({"presets": [{"name": name, "summary": summary} for name, summary in found.items()]})
        else:
            print_table(sys.stdout, Table("Presets", ("", ""), "ll", tuple(found.items())))


@config.command("show", cls=Command)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="PRESET", help="A name from `arrowquant config list`.", autocompletion=complete_preset
        ),
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Print a preset with its comments.

    Redirected into a file, it is a start for a config of your own.
    """
    with outcome(as_json=as_json):
        from arrowquant_dist.config import preset_file
        from arrowquant_dist.report.terminal import print_yaml

        text = preset_file(name).read_text(encoding="utf-8")
        if as_json:
            print_json({"preset": name, "yaml": text})
        else:
            print_yaml(sys.stdout, text)


@config.command("check", cls=Command)
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, a URL, or a preset.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Check a config, and print it with all defaults.

    An error names the key and the line, and the exit code is 2.
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

        print_text(sys.stdout, f"{file} is valid; with all defaults it is:")
        sys.stdout.write(
            yaml.safe_dump(values, sort_keys=False, default_flow_style=False, allow_unicode=False, width=78)
        )
