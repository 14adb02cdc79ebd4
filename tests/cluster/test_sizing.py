"""The tables of cluster/sizing.md are those that its commands print."""

from __future__ import annotations

import re
import shlex

import pytest
import simulate
from simulation.shapes import MODELS, checkpoint_of

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.plan import make_plan, worker_memory_nbytes
from tests.conftest import CHECKOUT
from tests.guides import TEXTS

PAGE = (CHECKOUT / "cluster" / "sizing.md").read_text()
TABLES = re.findall(r"```\n(python cluster/simulate\.py .*)\n```\n\n((?:\|.*\n)+)", PAGE)


def _rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _minutes(cell: str) -> float:
    number, unit = cell.split()
    return float(number) * {"min": 1, "h": 60}[unit]


def test_there_is_one_for_each_model() -> None:
    assert {"8B", "70B", "405B", "671B"} <= {shlex.split(command)[3] for command, _ in TABLES}


_SLOW = ("405B", "671B")  # to plan them takes seconds


@pytest.mark.parametrize(
    ("command", "table"),
    [
        pytest.param(
            *(command, table),
            id=command[27:],
            marks=pytest.mark.slow if shlex.split(command)[3] in _SLOW else (),
        )
        for command, table in TABLES
    ],
)
def test_a_table_is_what_its_command_prints(
    command: str, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 15 %, so that not each new rate needs a new page."""
    assert simulate.main(shlex.split(command)[2:]) == 0
    told, shown = _rows(table), _rows(capsys.readouterr().out)
    assert [row[:2] for row in told] == [row[:2] for row in shown]
    for there, here in zip(told, shown, strict=True):
        assert _minutes(there[2]) == pytest.approx(_minutes(here[2]), rel=0.15, abs=0.15)


_COSTS = re.findall(r"^\| (\d+ B).*? \| (\d+) → (\d+) GB \| (.*?) \|$", TEXTS["README.md"], re.MULTILINE)


@pytest.mark.parametrize(("model", "read", "stored", "cells"), _COSTS, ids=[row[0] for row in _COSTS])
def test_what_the_readme_says_a_run_costs_follows_from_its_table(
    model: str, read: str, stored: str, cells: str
) -> None:
    """At 16 workers; ranges of 8 MiB and one more for each float8 layer's scales, uploads of 16 MiB, and of each part
    the last piece, begin, end and commit."""
    time, node_hours, nodes, requests, month = cells.split(" | ")
    head = re.search(
        rf"^{model}\b.*\(.*?, {read} GB to read, {stored} GB to write, ([\d,]+) layers, ([\d,]+) shards\)",
        PAGE,
        re.MULTILINE,
    )
    assert head is not None
    layers, shards = (int(number.replace(",", "")) for number in head.groups())
    (table,) = [table for command, table in TABLES if command.startswith(_first(model))]
    (row,) = [row for row in _rows(table) if row[0] == "16"]
    assert (time, row[1]) == (row[2], "1")
    assert float(node_hours) == pytest.approx(_minutes(time) / 60, abs=0.006)
    assert nodes == f"${float(node_hours):.2f}"
    scales = layers if model == "671 B" else 0
    gets = int(read) * 1e9 / (8 << 20) + scales
    puts = int(stored) * 1e9 / (16 << 20) + 4 * shards
    assert float(requests.strip("$")) == pytest.approx(gets * 0.4e-6 + puts * 5e-6, abs=0.006)
    assert float(month.strip("$")) == pytest.approx(int(stored) * 0.023, abs=0.006)


def test_the_readme_has_the_costs_of_a_small_a_large_and_the_largest_model() -> None:
    assert [row[0] for row in _COSTS] == ["8 B", "70 B", "671 B"]


def _first(model: str) -> str:
    """How the command of a model's first table begins."""
    return f"python cluster/simulate.py --model {model.replace(' ', '')} --workers"


@pytest.mark.slow
@pytest.mark.parametrize(("told", "block_bytes"), re.findall(r"([\d.]+) GiB (?:a worker )?at (\d+MiB)", PAGE))
def test_a_worker_takes_as_much_memory_as_it_says(told: str, block_bytes: str) -> None:
    run = RunConfig.from_dict({"block_bytes": block_bytes})
    plans = [make_plan(checkpoint_of(MODELS[name]()), QuantizationConfig(), run) for name in ("8B", "671B")]
    most = max(worker_memory_nbytes(plan, "s3://models/out", run) for plan in plans)
    assert float(told) == pytest.approx(most / 2**30, rel=0.05)
