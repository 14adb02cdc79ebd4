"""What the README shows apart from commands and Python (test_guides.py) is true: the table, and the SQL."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pytest

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


def test_the_sql_of_the_readme_gives_the_weights(
    int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out", "minilm-int8").symlink_to(int8)
    (sql,) = blocks("sql")
    with duckdb.connect() as connection:
        for statement in duckdb.extract_statements(sql):
            found = connection.execute(statement)
        ((values,),) = found.fetchall()
    np.testing.assert_allclose(values, read_layers(int8)["pooler.dense.weight"].values[7], rtol=1e-6)
