"""cluster/README.md names files and options that exist."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import CHECKOUT

FOLDER = CHECKOUT / "cluster"
README = (FOLDER / "README.md").read_text()
_NOT_LISTED = {"README.md", "checkout.py"}  # not for people to start or edit


def test_it_lists_every_file_that_one_uses() -> None:
    table = README.split("| file | what it is |", 1)[1].split("\n\n", 1)[0]
    there = {path.name for path in FOLDER.iterdir() if path.is_file()} - _NOT_LISTED
    assert set(re.findall(r"`([\w]+\.\w+|Dockerfile)`", table)) == there


def test_it_lists_the_options_of_the_submitter() -> None:
    usage = README.split("## Submitting", 1)[1].split("```", 2)[1]
    shown = subprocess.run(
        [sys.executable, str(FOLDER / "submit.py"), "--help"], check=True, capture_output=True, text=True
    ).stdout
    offered = set(re.findall(r"^  (--[a-z-]+)", shown, re.MULTILINE)) - {"--help"}
    assert set(re.findall(r"--[a-z][a-z-]+", usage)) == offered


def test_its_configs_and_scripts_exist() -> None:
    for name in set(re.findall(r"(?:cluster|configs)/[\w.]+\.(?:yaml|py|md)", README)):
        assert (CHECKOUT / name).exists(), name
