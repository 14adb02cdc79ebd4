"""What the README shows does what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arrowquant_dist.texts import read_texts
from tests.guides import BLOCKS, TEXTS
from tests.integration.conftest import Targets
from tests.integration.layers import read_layers

README = TEXTS["README.md"]


def blocks(language: str) -> list[str]:
    return [block.text for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("row", re.findall(r"^\| `[\w-]+\.yaml` \|.*", README, re.MULTILINE))
def test_the_table_of_the_readme_is_what_comes_out(targets: Targets, row: str) -> None:
    config, *shown = (cell.strip(" `") for cell in row.strip("|").split("|"))
    size, vs_fp16, vs_source, mean, least = (float(cell.split()[0].strip("×")) for cell in shown[:5])
    report = json.loads((targets[config.removesuffix(".yaml")] / "report" / "report.json").read_text())
    totals, cosine = report["totals"], report["accuracy"]["cosine"]
    assert size * 1e6 == pytest.approx(totals["parts_nbytes"], rel=0.01)
    assert vs_fp16 == pytest.approx(totals["compression_vs_fp16"], abs=0.01)
    assert vs_source == pytest.approx(totals["compression_vs_source"], abs=0.05)
    assert (mean, least) == pytest.approx((cosine["mean"], cosine["min"]), abs=0.001)


@pytest.fixture
def folder(targets: Targets, minilm: Path, tmp_path: Path) -> Path:
    """A working directory with the README's out/minilm-int8 and its like, and a few texts."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "minilm-int8").symlink_to(targets["int8"])
    for name in ("int4", "int2"):  # an evaluation is written into its target
        shutil.copytree(targets[name], tmp_path / "out" / f"minilm-{name}")
    (tmp_path / "few.txt").write_text("\n".join(read_texts("builtin:held-back").items[::16]))
    save_first_block(minilm, tmp_path / "first-block")
    return tmp_path


def save_first_block(minilm: Path, folder: Path) -> None:
    """MiniLM with one of its six blocks: to calibrate with `gptq` takes as long for each."""
    shutil.copytree(minilm, folder)
    weights = load_file(minilm / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not re.search(r"layer\.[1-9]", name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((minilm / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))


# What takes minutes in the README, and as little of it as there can be.
LESS = {
    '"builtin:held-back"': '"few.txt"',
    '"builtin"': '"few.txt"',
    "steps=400": "steps=2",
    'calibrate("minilm"': 'calibrate("first-block"',
}


def shortened(block: str) -> str:
    for much, little in LESS.items():
        block = block.replace(much, little)
    return block


# Each by itself, but for the seconds that importing torch and transformers takes.
ONE_AFTER_ANOTHER = """
import json, sys

for number, block in enumerate(json.loads(sys.argv[1])):
    exec(compile(block, f"block {number}", "exec"), {"__name__": "__main__"})
"""


def test_the_python_of_readme_and_guides_runs(folder: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        "-c",
        ONE_AFTER_ANOTHER,
        json.dumps([*map(shortened, blocks("python"))]),
    ]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_sql_of_the_readme_gives_the_weights(
    folder: Path, int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (sql,) = blocks("sql")
    with duckdb.connect() as connection:
        for statement in duckdb.extract_statements(sql):
            found = connection.execute(statement)
        ((values,),) = found.fetchall()
    np.testing.assert_allclose(values, read_layers(int8)["pooler.dense.weight"].values[7], rtol=1e-6)
