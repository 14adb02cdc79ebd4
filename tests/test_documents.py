"""What the documents say about the code is true: rooms, files, functions, tests, links and versions."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

PACKAGE = CHECKOUT / "arrowquant_dist"
INSIDE = PACKAGE / "README.md"
CONTRIBUTING = CHECKOUT / "CONTRIBUTING.md"
FOR_DEVELOPERS = (INSIDE, CONTRIBUTING)
DOCUMENTS = sorted(
    path
    for folder in (".", "arrowquant_dist", "cluster")
    for path in (CHECKOUT / folder).rglob("*.md")
    if not path.relative_to(CHECKOUT).parts[0].startswith(".")  # environments, and what pytest leaves
)
PLACEHOLDER = "NEW"  # stands for a file that is to be added

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_the_rooms_are_those_of_the_contract() -> None:
    shown = re.search(r"```\n(.*?)```", section(INSIDE, "The rooms"), re.DOTALL)
    assert shown is not None
    floors = [set(re.split(r"\s{2,}", line)[0].split(" | ")) for line in shown[1].splitlines()]
    assert floors == contract()


def test_each_room_has_its_paragraph_and_each_paragraph_a_room() -> None:
    paragraphs = section(INSIDE, "The rooms").split("### A paragraph a room", 1)[1]
    assert sorted(re.findall(r"\*\*`(\w+)`\*\*", paragraphs)) == sorted(set().union(*contract()))


def test_the_modules_that_know_private_names_are_listed() -> None:
    listed = set(re.findall(r"`([\w/]*private\.py)`", section(INSIDE, "The rooms")))
    assert listed == {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*private.py")}


def test_a_layer_lives_in_ten_steps_and_each_names_its_functions() -> None:
    steps = re.findall(r"^(\d+)\. (.*)$", section(INSIDE, "The life of a layer"), re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, 11))
    assert [step for _, step in steps if "::" not in step] == []


def test_each_guarantee_names_the_test_that_holds_it() -> None:
    rows = re.findall(
        r"^\| (?!what|---)(.*) \| (.*) \|$", section(INSIDE, "What has to stay true"), re.MULTILINE
    )
    assert len(rows) > 30
    assert [claim for claim, held_by in rows if not re.search(r"`tests/[\w/]+\.py::test_\w+`", held_by)] == []


@pytest.mark.parametrize("document", FOR_DEVELOPERS, ids=lambda path: path.name + "-" + path.parent.name)
def test_every_file_function_and_test_that_is_named_exists(document: Path) -> None:
    assert [named for named in code_spans(document) if not exists(named)] == []


def test_the_modules_that_comments_and_docstrings_name_exist() -> None:
    missing = {str(module): missing_modules(module) for module in sorted(PACKAGE.rglob("*.py"))}
    assert {module: names for module, names in missing.items() if names} == {}


def missing_modules(module: Path) -> list[str]:
    """Those that its comments and docstrings name and nobody has."""
    tokens = tokenize.generate_tokens(io.StringIO(module.read_text()).readline)
    prose = (token.string for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING))
    named = {name for text in prose for name in re.findall(r"(?<![\w*{/])[\w/]+\.py\b", text)}
    return sorted(name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in modules()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose(document))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_readme_leads_to_what_developers_read() -> None:
    links = re.findall(r"\]\(([^)]+)\)", prose(CHECKOUT / "README.md"))
    assert {"arrowquant_dist/README.md", "CONTRIBUTING.md"} <= set(links)


def test_the_versions_are_those_of_the_code() -> None:
    rows = re.findall(
        r"^\| `[\w.]+` \| `([\w/.]+)::(\w+)` \| (\d+) \|", CONTRIBUTING.read_text(), re.MULTILINE
    )
    assert len(rows) == 8
    for path, name, now in rows:
        module = importlib.import_module(f"arrowquant_dist.{path.removesuffix('.py').replace('/', '.')}")
        assert str(getattr(module, name)) == now, (path, name)


def test_the_version_of_the_package_is_the_one_of_the_project() -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert f"| package | pyproject.toml, CHANGELOG.md | {version} |" in CONTRIBUTING.read_text()


def test_the_pythons_of_readme_and_metadata_are_those_that_ci_tries() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    named = re.findall(
        r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.M
    )
    whole, found, asked = re.findall(
        r"with Python (3\.\d+) on every commit.*So far these were (3.*?):.*Python (3\.\d+) has not been there",
        section(CHECKOUT / "README.md", "Platforms"),
    )[0]
    assert project["requires-python"] == f">={whole}"
    assert named == [whole, *found.split(" and ")]
    tried = re.search(r"^for version in (.*); do$", (CHECKOUT / ".ci" / "run").read_text(), re.MULTILINE)
    assert tried is not None
    assert tried[1].split() == [*found.split(" and "), asked]


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert exists("driver/run.py::quantize")
    assert not exists("driver/run.py::quantise")
    assert not exists("driver/ran.py")
    assert exists("worker/shard.py::ShardWorker.run")
    assert not exists("worker/shard.py::ShardWorker.ran")
    assert exists("tests/test_documents.py::test_a_name_that_is_not_there_is_noticed")
    assert not exists("no_such_name")


def prose(document: Path) -> str:
    """The document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def section(document: Path, heading: str) -> str:
    return document.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def contract() -> list[set[str]]:
    """The floors of the layers contract, from above, without the package's name."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    [layers] = [
        one["layers"] for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers"
    ]
    return [{name.removeprefix("arrowquant_dist.") for name in floor.split(" | ")} for floor in layers]


def code_spans(document: Path) -> list[str]:
    """What stands in backticks and looks like a path or a name of this repository."""
    spans = re.findall(r"`([^`\n]+)`", prose(document))
    is_name = re.compile(r"[\w/.-]+\.(py|yaml|toml)(::[\w.]+)?|[\w/]+/|_*[A-Za-z]\w*(\.\w+)*")
    found = [span for span in spans if is_name.fullmatch(span) and PLACEHOLDER not in span]
    return [
        span for span in found if "/" in span or "_" in span.strip("_") or re.search(r"[a-z][A-Z]|\.py", span)
    ]


def exists(named: str) -> bool:
    path, _, name = named.partition("::")
    if "/" not in path and not re.search(r"\.(py|yaml|toml)$", path):
        return is_known(path) or is_known(path.rpartition(".")[2])
    place = next((root / path for root in (PACKAGE, CHECKOUT) if (root / path).exists()), None)
    return place is not None and (not name or defines(place, tuple(name.split("."))))


def defines(path: Path, names: tuple[str, ...]) -> bool:
    """Whether a module has a class, function or value of that name, or a class a member."""
    body = ast.parse(path.read_text()).body
    for name in names[:-1]:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == name), [])
    return names[-1] in {found for node in body for found in bound_by(node)}


@cache
def modules() -> tuple[str, ...]:
    folders = (PACKAGE, CHECKOUT / "tests", CHECKOUT / "cluster")
    return tuple(path.relative_to(CHECKOUT).as_posix() for folder in folders for path in folder.rglob("*.py"))


def bound_by(node: ast.AST) -> list[str]:
    if isinstance(node, Definition):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def is_known(name: str) -> bool:
    """Whether the package binds it, takes it as an argument or has it as a text (columns, keys, options), or tests bind
    it."""
    return name == PACKAGE.name or any(
        name == path.stem or (name in text and name in names_in(path)) for path, text in texts().items()
    )


@cache
def texts() -> dict[Path, str]:
    paths = [*PACKAGE.rglob("*.py"), *(CHECKOUT / "tests").rglob("*.py")]
    return {path: path.read_text() for path in paths}


@cache
def names_in(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(texts()[path])):
        found.update(bound_by(node))
        if PACKAGE not in path.parents:
            continue
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return frozenset(found)
