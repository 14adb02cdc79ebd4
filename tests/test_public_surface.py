"""What users may rely on is listed once in code and once in the README, and both say the same."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer.main
import yaml

import arrowquant_dist
from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.cli import app
from arrowquant_dist.config import load_config
from tests.conftest import CHECKOUT
from tests.guides import TEXTS, section

README = TEXTS["README.md"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def block(guide: str, heading: str, language: str = "") -> str:
    """The first code block under a heading of a guide."""
    found = re.search(rf"^```{language}\n(.*?)^```", section(guide, heading), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_readme_lists_the_public_names() -> None:
    table = README.split("| name | what it is |", 1)[1].split("\n\n", 1)[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(arrowquant_dist.__all__)


@pytest.mark.parametrize("name", arrowquant_dist.__all__)
def test_a_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    assert getattr(arrowquant_dist, name).__doc__
    assert name in dir(arrowquant_dist)


def test_other_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        arrowquant_dist.no_such_name  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, arrowquant_dist; print(*(m for m in sys.modules if m.startswith('arrowquant_dist')))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["arrowquant_dist"]


def test_the_readme_lists_the_commands_and_their_options() -> None:
    usage = block("README.md", "Command line")
    assert set(re.findall(r"^arrowquant (\w+)", usage, re.MULTILINE)) == set(COMMANDS)
    listed = usage.split("arrowquant inspect", 1)[0]
    assert set(re.findall(r"--[a-z-]+", listed)) == {
        option
        for parameter in COMMANDS["quantize"].params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }


@pytest.mark.parametrize(
    ("guide", "heading"), [("README.md", "Choose bits"), ("configs/README.md", "A config")]
)
def test_the_config_of_a_guide_is_one(guide: str, heading: str) -> None:
    values = yaml.safe_load(block(guide, heading, "yaml"))
    run = values.pop("run", {})
    assert isinstance(QuantizationConfig.from_dict(values), QuantizationConfig)
    assert isinstance(RunConfig.from_dict(run), RunConfig)


def test_the_guide_to_bits_names_the_configs_that_there_are() -> None:
    named = set(re.findall(r"`([\w-]+\.yaml)`", TEXTS["configs/README.md"]))
    there = {path.name for path in (CHECKOUT / "configs").glob("*.yaml")}
    assert named == there
    for name in there:
        load_config(CHECKOUT / "configs" / name)


def test_the_changelog_is_about_this_version() -> None:
    project = (CHECKOUT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"', project, re.MULTILINE)
    assert version is not None
    assert version[1] in (CHECKOUT / "CHANGELOG.md").read_text()
