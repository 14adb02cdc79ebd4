"""The public names are listed once in code and once in the README, and both lists agree."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

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

OURS = "arrowquant_dist"
NAMES = [name for name in arrowquant_dist.__all__ if name != "__version__"]


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


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_every_method_parameter_and_field_of_a_public_name_is(name: str) -> None:
    assert [*missing(name, getattr(arrowquant_dist, name))] == []


def missing(name: str, thing: Any) -> Iterator[str]:
    """What help() shows and says nothing of."""
    if inspect.isclass(thing):
        yield from _of_class(name, thing)
    else:
        yield from _of_function(name, thing, inspect.getdoc(thing) or "")


def _of_class(name: str, cls: type) -> Iterator[str]:
    said = _own_doc(cls)
    if not said:
        yield name
    fields = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    yield from (
        f"{name}({field})" for field in fields if not field.startswith("_") and not is_said(field, said)
    )
    for member, value in inspect.getmembers(cls):
        if member == "__init__" and not fields:
            yield from _of_function(name, value, f"{said} {inspect.getdoc(value) if is_ours(value) else ''}")
        if member.startswith("_") or not is_ours(value) or member in fields:
            continue
        yield from _of_function(f"{name}.{member}", value, inspect.getdoc(value) or "", said)


def _of_function(name: str, function: Any, said: str, more: str = "") -> Iterator[str]:
    """more: of its class, whose words are the same ones in all its methods."""
    if not is_ours(function):
        return
    if not said:
        yield name
    if isinstance(function, property):
        return
    for parameter in inspect.signature(function).parameters:
        if parameter not in ("self", "cls") and not is_said(parameter, f"{said} {more}"):
            yield f"{name}({parameter})"


def is_ours(thing: Any) -> bool:
    function: Callable[..., Any] | Any = thing.fget if isinstance(thing, property) else thing
    return callable(function) and str(getattr(function, "__module__", "")).startswith(OURS)


def is_said(word: str, text: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


def _own_doc(cls: type) -> str:
    """Not the signature that dataclasses make one of."""
    said = cls.__doc__ or ""
    return (
        ""
        if said.startswith(f"{cls.__name__}(") and dataclasses.is_dataclass(cls)
        else inspect.cleandoc(said)
    )
