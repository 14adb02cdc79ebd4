"""Every fenced block of README and guides works: commands and Python code run in their order, and print what is shown
as their output.

A block that no rule here covers fails. Blocks that take minutes are marked slow, and run with as little work as
possible (`LESS`).
"""

from __future__ import annotations

import importlib
import io
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import simulate
import submit
import typer.main
import yaml
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from arrowquant_dist.cli import app
from arrowquant_dist.config import parse_config
from arrowquant_dist.texts import read_texts
from tests.checkpoint.coded_models import MAKERS
from tests.cluster.test_sizing import TABLES
from tests.conftest import CHECKOUT
from tests.export.gguf.models import byte_pairs, save_model
from tests.guides import BLOCKS, GUIDES, TEXTS, Block
from tests.integration.conftest import Targets
from tests.integration.test_keep_codes import save as save_coded
from tests.servers.seaweedfs import SeaweedFS

# What a line begins with that is parsed and not run, and why.
PARSED_ONLY = {
    "pip": "would change the environment that this runs in; .ci/run installs package and extras into a new one",
    "pytest": "is this suite, and the line of .ci/run",
    "export": "is the shell's",
    "ray": "starts machines, or a Ray on this one; tests/cluster/test_local.py has a cluster of several nodes",
    "python cluster/submit.py": "wants a job server, as tests/cluster/test_submit.py has; what is behind -- runs",
    "vllm": "wants an environment of its own; tests/plugins/vllm/test_serve.py serves by the lines of the guide",
    "llama-server": "is a program of llama.cpp; tests/export/gguf/test_llama_cpp.py serves by the lines of the guide",
}
# Neither commands nor code, and what holds them.
SHOWN = {
    "arrowquant quantize SOURCE TARGET": "tests/test_public_surface.py",
    "python cluster/submit.py [--address URL]": "tests/cluster/test_readme.py",
    "out/minilm-int8/": "test_the_tree_of_a_dataset_is_what_is_there",
}
SIZING = "cluster/sizing.md"  # its commands and tables are tests/cluster/test_sizing.py's
SLOW = re.compile(r"\b(calibrate|distill|evaluate|validate)\b")
EXIT_CODES = {"validate": {0, 1}}  # 1: a figure that misses its target, as times do on a busy machine
# What takes minutes, and as little of it as there can be. MiniLM with one of its six blocks stands for all of it where
# statistics are taken: that takes as long for each.
LESS = (
    ("--texts builtin:held-back", "--texts few.txt"),
    ("--texts builtin", "--texts few.txt"),
    ('"builtin:held-back"', '"few.txt"'),
    ('"builtin"', '"few.txt"'),
    ("minilm out/validation", "minilm out/validation --configs int8 --texts few.txt"),
    ('"out/validation", ["int8", "int4"])', '"out/validation", ["int8"], texts="few.txt")'),
    ("--minutes 5", "--steps 2"),
    ("steps=400", "steps=2"),
)
ONE_BLOCK = re.compile(r"\bminilm(?=[ \"])")


@dataclass
class Place:
    """The working directory of a guide's reader. printed: by the last block."""

    targets: Targets
    folder: Path
    printed: str = ""

    def run(self, block: Block) -> None:
        if block.language == "text":
            assert_shown(block.text, self.printed)
        elif block.language == "yaml":
            parse_config(block.text.encode())
        elif block.language == "python":
            self._provide(block.text)
            with redirect_stdout(io.StringIO()) as out:
                exec(compile(less(block.text), block.first, "exec"), {"__name__": "__main__"})  # noqa: S102
            self.printed = out.getvalue()
        elif block.language == "" and shown_by(block) is None:
            self._provide(block.text)
            self.printed = "".join(self._line(line) for line in less(block.text).splitlines())
        else:
            assert block.language in ("", "sql"), f"nothing is known of {block.language!r}"

    def _line(self, line: str) -> str:
        """What it prints."""
        words = shlex.split(line, comments=True)
        while "&&" in words:
            end = words.index("&&")
            check(words[:end])
            words = words[end + 1 :]
        if words[0] == "arrowquant":
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code in EXIT_CODES.get(words[1], {0}), f"{line}\n{done.output}"
            return done.stdout
        if words[:2] == ["python", "cluster/simulate.py"]:
            assert simulate.main(words[2:]) == 0
            return ""
        check(words)
        if words[:2] == ["python", "cluster/submit.py"]:  # what a worker of the cluster would be given, here
            return self._line(shlex.join(["arrowquant", *words[words.index("--") + 1 :]]))
        return ""

    def _provide(self, text: str) -> None:
        """Datasets of MiniLM that a block reads and an earlier one, of this guide or of README, has made."""
        for name in set(re.findall(r"out/minilm-(int\d)\b(?!-)", text)):
            target = self.folder / "out" / f"minilm-{name}"
            made_here = re.search(rf"(quantize minilm |quantize\(\"minilm\", \")out/minilm-{name}\b", text)
            if not target.exists() and made_here is None:
                shutil.copytree(self.targets[name], target)


def less(text: str) -> str:
    for much, little in LESS:
        text = text.replace(much, little)
    return ONE_BLOCK.sub("first-block", text) if "calibrate" in text else text


def shown_by(block: Block) -> str | None:
    """The test of a block that is neither commands nor code."""
    return next((test for first, test in SHOWN.items() if block.first.startswith(first)), None)


def check(words: list[str]) -> None:
    """A line that is parsed only, by the program's own parser where it has one."""
    program = " ".join(words[:2]) if words[0] == "python" else words[0]
    assert program in PARSED_ONLY, f"no rule for {' '.join(words)!r}"
    if program == "pip":
        assert words[1] == "install"
        for extra in re.findall(r"^\.\[(.*)\]$", "\n".join(words), re.MULTILINE):
            assert set(extra.split(",")) <= set(extras()), words
    elif program == "pytest":
        assert shlex.join(words) in (CHECKOUT / ".ci" / "run").read_text().splitlines()
    elif program == "export":
        assert re.fullmatch(r"\w+=\S+", words[1])
    elif program == "ray":
        command = importlib.import_module("ray.scripts.scripts").cli.commands[words[1]]
        command.make_context(words[1], words[2:])
    elif program == "python cluster/submit.py":
        assert submit.main(words[2:]) == 0
    elif program == "vllm":
        assert (words[1], words[3:]) in (("serve", ["--load-format", "arrowquant"]), ("serve", []))
        assert Path(words[2], "config.json").exists()
    else:
        assert words[1] == "-m"
        assert Path(words[2]).read_bytes()[:4] == b"GGUF"


def extras() -> dict[str, Any]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return dict(project["optional-dependencies"])


def assert_shown(shown: str, printed: str) -> None:
    """Word for word, and numbers to the last digit that is shown."""
    for line, found in zip(shown.splitlines(), printed.splitlines(), strict=True):
        assert len(line.split()) == len(found.split()), f"{line!r} is shown, {found!r} came out"
        for one, other in zip(line.split(), found.split(), strict=True):
            assert one == other or close(one, other), f"{line!r} is shown, {found!r} came out"


def close(shown: str, found: str) -> bool:
    number = re.compile(r"\d+(?:\.(\d+))?(?!\d)")
    if number.sub("#", shown) != number.sub("#", found):
        return False
    pairs = zip(number.finditer(shown), number.finditer(found), strict=True)
    return all(
        a[0] == b[0] or (a[1] and abs(float(a[0]) - float(b[0])) < 1.1 * 10 ** -len(a[1])) for a, b in pairs
    )


def without_blocks(guide: str) -> str:
    return re.sub(r"^```.*?^```$", "", TEXTS[guide], flags=re.DOTALL | re.MULTILINE)


def fenced(page: str) -> str:
    return "\n".join(re.findall(r"^[ \t>]*```[^\n]*\n(.*?)```", page, re.DOTALL | re.MULTILINE))


def exists(words: list[str]) -> bool:
    """Whether the program has this command, with each option that is named."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", ()):
        command = command.commands[words.pop(0)]
    offered = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return not hasattr(command, "commands") and {word for word in words if word.startswith("--")} <= offered


@pytest.fixture(scope="module")
def models(seaweedfs: SeaweedFS) -> str:
    """The bucket of the guides. Its first objects take the server a while, once."""
    [uri] = seaweedfs.make_buckets(["models"])
    return uri


@pytest.fixture
def place(
    targets: Targets,
    minilm: Path,
    seaweedfs: SeaweedFS,
    models: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    """With a small Llama at models/llama and s3://models/llama, a coded one beside it, and a few texts."""
    (tmp_path / "few.txt").write_text("\n".join(read_texts("builtin:held-back").items[::16]))
    save_first_block(minilm, tmp_path / "first-block")
    save_model(tmp_path / "models" / "llama", "llama", byte_pairs())
    save_coded(tmp_path / "models" / "llama-gptq", MAKERS["gptq"])
    seaweedfs.objects.upload_folder(tmp_path / "models", models)
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweedfs.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret)
    monkeypatch.setattr("submit._client", lambda _address: None)
    monkeypatch.setattr("submit.submit", lambda _client, _job: ("id", True))
    monkeypatch.setattr("submit.follow", lambda _client, _id: 0)
    monkeypatch.chdir(tmp_path)
    yield Place(targets, tmp_path)
    seaweedfs.objects.clear("models")


def save_first_block(minilm: Path, folder: Path) -> None:
    """MiniLM with one of its six blocks: to calibrate with `gptq` takes as long for each."""
    shutil.copytree(minilm, folder)
    weights = load_file(minilm / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not re.search(r"layer\.[1-9]", name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((minilm / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))


def blocks_of(guide: str) -> list[Block]:
    return [block for block in BLOCKS if block.guide == guide]


def steps_of(guide: str) -> list[list[Block]]:
    """Blocks, each with the output that is shown behind it."""
    steps: list[list[Block]] = []
    for block in blocks_of(guide):
        if block.language == "text":
            steps[-1].append(block)
        else:
            steps.append([block])
    return steps


def is_slow(step: list[Block]) -> bool:
    return shown_by(step[0]) is None and SLOW.search(step[0].text) is not None


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if guide != SIZING])
def test_the_quick_blocks_of_a_guide_run_in_their_order(guide: str, place: Place) -> None:
    for step in steps_of(guide):
        if not is_slow(step):
            for block in step:
                place.run(block)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("guide", [guide for guide in GUIDES if any(map(is_slow, steps_of(guide)))])
def test_the_slow_blocks_of_a_guide_run_in_their_order(guide: str, place: Place) -> None:
    """Of less than they say, so that none can show what comes out."""
    for step in filter(is_slow, steps_of(guide)):
        (block,) = step
        place.run(block)


@pytest.mark.parametrize("guide", GUIDES)
def test_no_block_of_a_guide_escapes(guide: str) -> None:
    """Neither by a fence that is indented, or has other words behind it or other marks, nor as indented text."""
    fences = re.findall(r"^[ \t>]*(?:```|~~~)", TEXTS[guide], re.MULTILINE)
    assert len(fences) == 2 * len(blocks_of(guide))
    assert re.findall(r"^(?: {4}|\t).*", without_blocks(guide), re.MULTILINE) == []


def test_every_page_with_commands_is_a_guide() -> None:
    """But for how to work on the program, of which .ci/run is most and takes a quarter of an hour."""
    folders = ("arrowquant_dist", "cluster", "configs", "tests")
    pages = [
        *CHECKOUT.glob("*.md"),
        *(page for folder in folders for page in (CHECKOUT / folder).rglob("*.md")),
    ]
    command = re.compile(r"^(?:\$ )?(?:arrowquant|python|pip|pytest|ray|vllm) ", re.MULTILINE)
    with_commands = {
        page.relative_to(CHECKOUT).as_posix() for page in pages if command.search(fenced(page.read_text()))
    }
    assert with_commands - {"CONTRIBUTING.md"} == set(GUIDES)


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_within_sentences_have_the_options_that_they_name(guide: str) -> None:
    commands = re.findall(r"`arrowquant ([a-z][^`\n]*)`", without_blocks(guide))
    assert [command for command in commands if not exists(command.split())] == []


def test_the_commands_of_the_page_on_sizing_are_those_whose_tables_are_tested() -> None:
    assert [block.text.strip() for block in blocks_of(SIZING)] == [command for command, _ in TABLES]


def test_what_no_rule_is_for_is_noticed(targets: Targets, tmp_path: Path) -> None:
    place = Place(targets, tmp_path)
    with pytest.raises(AssertionError, match="no rule for 'curl x'"):
        place.run(Block("README.md", "", "curl x\n"))
    with pytest.raises(AssertionError, match="nothing is known of 'toml'"):
        place.run(Block("README.md", "toml", "a = 1\n"))


@pytest.mark.parametrize(
    ("shown", "found"), [("mean 0.994", "mean 0.991"), ("11.2 MB", "11.2 kB"), ("a b", "a"), ("1", "1\n2")]
)
def test_another_output_is_noticed(shown: str, found: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        assert_shown(shown, found)


def test_the_tree_of_a_dataset_is_what_is_there(int8: Path) -> None:
    (tree,) = (block for block in BLOCKS if block.first == "out/minilm-int8/")
    named = set(re.findall(r"[\w-]+\.(?:json|parquet|md|html)|[a-z]+(?=/)", tree.text)) - {"out"}
    there = {path.name for path in int8.rglob("*")} | {"evaluation.json", "part"}
    assert {name for name in named if not name.startswith("minilm")} <= there


def test_the_config_that_readme_shows_is_short_for_the_guide_s() -> None:
    short, whole = (
        yaml.safe_load(block.text)
        for guide in ("README.md", "configs/README.md")
        for block in blocks_of(guide)
        if block.language == "yaml"
    )
    assert {key: whole[key] for key in short} == short
