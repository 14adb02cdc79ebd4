"""The tables of cluster/sizing.md are what its commands print."""

from __future__ import annotations

import re
import shlex

import pytest
import simulate
from simulation.shapes import MODELS, checkpoint_of

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.plan import make_plan, worker_memory_nbytes
from tests.conftest import CHECKOUT

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


@pytest.mark.slow
@pytest.mark.parametrize(("told", "block_bytes"), re.findall(r"([\d.]+) GiB (?:a worker )?at (\d+MiB)", PAGE))
def test_a_worker_takes_as_much_memory_as_it_says(told: str, block_bytes: str) -> None:
    run = RunConfig.from_dict({"block_bytes": block_bytes})
    plans = [make_plan(checkpoint_of(MODELS[name]()), QuantizationConfig(), run) for name in ("8B", "671B")]
    most = max(worker_memory_nbytes(plan, "s3://models/out", run) for plan in plans)
    assert float(told) == pytest.approx(most / 2**30, rel=0.05)
