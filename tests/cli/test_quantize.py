"""`quantize`: what its options become, and how it ends. A stand-in for the driver records the call."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.cli import app
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.errors import TargetConflict
from arrowquant_dist.plan import Plan, ShardsThere, StoredSizes, make_plan
from arrowquant_dist.reduce import ReportFigures

GOLDEN = Path(__file__).parents[1] / "report" / "golden_report.json"


@dataclass(frozen=True)
class Event:
    done_nbytes: int
    total_nbytes: int
    done_layers: int = 0
    total_layers: int = 8
    workers_alive: int = 2
    compiling: str = ""


@dataclass(frozen=True)
class Outcome:
    report: ReportFigures
    already_finished: bool
    target: str
    damaged: tuple[str, ...] | None = None
    has_model: bool = False


@dataclass(frozen=True)
class Preview:
    plan: Plan
    sizes: StoredSizes
    there: ShardsThere


@dataclass
class Driver:
    """Records its last call; raises or finishes as it is told to."""

    raises: BaseException | None = None
    already_finished: bool = False
    damaged: tuple[str, ...] | None = None
    has_model: bool = False
    places: tuple[str, str] = ("", "")
    there: ShardsThere = field(default_factory=lambda: ShardsThere("empty", 0))
    config: QuantizationConfig = field(default_factory=QuantizationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def quantize(
        self,
        source: str,
        target: str,
        config: QuantizationConfig,
        run: RunConfig,
        on_progress: Callable[[Any], None] | None = None,
    ) -> Outcome:
        self.places, self.config, self.run = (source, target), config, run
        if on_progress is not None:
            on_progress(Event(0, 1000))
            on_progress(Event(1000, 1000))
        if self.raises is not None:
            raise self.raises
        report = ReportFigures.from_dict(json.loads(GOLDEN.read_text()))
        return Outcome(report, self.already_finished, target, self.damaged, self.has_model)

    def preview(self, source: str, target: str, config: QuantizationConfig, run: RunConfig) -> Preview:
        self.places = source, target
        plan = make_plan(open_checkpoint(source), config, run)
        return Preview(plan, StoredSizes({block.layer_name: 7 for block in plan.blocks}, 99), self.there)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    stand_in = Driver()
    module = ModuleType("arrowquant_dist.driver")
    module.__dict__.update(quantize_tracked=stand_in.quantize, preview=stand_in.preview)
    monkeypatch.setitem(sys.modules, "arrowquant_dist.driver", module)
    monkeypatch.setattr("arrowquant_dist.driver", module, raising=False)
    return stand_in


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), QuantizationConfig()),
        (("--quant", "int8"), QuantizationConfig("int8")),
        (("--quant", "int4"), QuantizationConfig("int4", per_channel=False, group_size=128, symmetric=False)),
        (
            ("--quant", "int2", "--method", "rtn"),
            QuantizationConfig("int2", per_channel=False, symmetric=False, method="rtn"),
        ),
        (("--quant", "int3", "--per-channel"), QuantizationConfig("int3")),
        (("--quant", "int4", "--symmetric"), QuantizationConfig("int4")),
        (("--quant", "int4", "--asymmetric"), QuantizationConfig("int4", symmetric=False)),
        (
            ("--quant", "int4", "--group-size", "64"),
            QuantizationConfig("int4", per_channel=False, group_size=64),
        ),
        (("--per-group", "--asymmetric"), QuantizationConfig(per_channel=False, symmetric=False)),
        (("--per-channel", "--group-size", "64"), QuantizationConfig(group_size=64)),
    ],
)
def test_options_become_the_config(
    driver: Driver, options: tuple[str, ...], expected: QuantizationConfig
) -> None:
    assert run("a", "b", *options).exit_code == 0
    assert driver.places == ("a", "b")
    assert driver.config == expected


def test_run_options_become_the_run(driver: Driver) -> None:
    assert (
        run("a", "b", "--engine", "ray", "--address", "auto", "--workers", "3", "--overwrite").exit_code == 0
    )
    assert driver.run == RunConfig(engine="ray", address="auto", workers=3, overwrite=True)


def test_options_win_over_the_config_file(driver: Driver, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "quant_type: int4\ngroup_size: 32\nper_channel: false\nrun: {workers: 7, overwrite: true}\n"
    )
    assert run("a", "b", "--config", config, "--quant", "int2").exit_code == 0
    assert driver.config == QuantizationConfig("int2", per_channel=False, group_size=32)
    assert driver.run == RunConfig(workers=7, overwrite=True)


@pytest.mark.parametrize(
    "options", [("--quant", "int5"), ("--method", "magic"), ("--workers", "0"), ("--engine", "x")]
)
def test_impossible_options_are_bad_input(driver: Driver, options: tuple[str, ...]) -> None:
    result = run("a", "b", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_a_run_ends_with_its_report_on_stdout_and_progress_on_stderr(driver: Driver) -> None:
    result = run("a", "out/b")
    assert result.exit_code == 0
    assert "weight cosine" in result.stdout
    assert "out/b" in result.stdout
    assert result.stderr.startswith("quantize: 1.00 kB of 1.00 kB, 100.0 %, 0 of 8 layers")
    assert "full report: arrowquant report out/b" in result.stdout
    assert "evaluate" not in result.stdout  # there is no config.json to build a model by


def test_json_is_all_that_is_printed(driver: Driver) -> None:
    result = run("a", "out/b", "--json")
    assert result.stderr.startswith("quantize: 1.00 kB of 1.00 kB, 100.0 %")
    assert run("a", "out/b", "--json", "--quiet").stderr == ""
    values = json.loads(result.stdout)
    assert (values["target"], values["already_finished"]) == ("out/b", False)
    assert values["report"] == {**json.loads(GOLDEN.read_text()), "timeline": None}


def test_secrets_of_a_place_are_not_said_again(driver: Driver) -> None:
    driver.has_model = True
    result = run("s3://me:geheim@models/a", "s3://me:geheim@bucket/b?token=geheim")
    assert result.exit_code == 0
    assert "arrowquant evaluate s3://models/a s3://bucket/b --texts" in result.stdout
    assert "geheim" not in result.output


def test_a_finished_target_says_so_and_ends_with_0(driver: Driver) -> None:
    driver.already_finished = True
    result = run("a", "out/b")
    assert result.exit_code == 0
    assert "out/b is finished already" in result.stdout


def test_a_repair_says_what_was_made_again_or_that_there_was_nothing(driver: Driver) -> None:
    driver.damaged = ("index.parquet", "weights/shard=00001/part-0.parquet")
    result = run("a", "out/b", "--repair")
    assert driver.run == RunConfig(repair=True)
    assert (
        "out/b: 2 damaged objects were made again (index.parquet, weights/shard=00001/part-0" in result.stdout
    )
    assert json.loads(run("a", "out/b", "--repair", "--json").stdout)["damaged"] == [*driver.damaged]
    driver.damaged, driver.already_finished = (), True
    result = run("a", "out/b", "--repair")
    assert result.exit_code == 0
    assert "out/b: every object holds what was written; there is nothing to repair" in result.stdout


def test_an_interrupted_run_says_how_to_resume(driver: Driver) -> None:
    driver.raises = KeyboardInterrupt()
    result = run("a", "b")
    assert result.exit_code == 130
    assert "the same command again to resume" in result.stderr
    assert "Traceback" not in result.output
    assert json.loads(run("a", "b", "--json").stdout)["error"]["kind"] == "interrupted"


def test_a_target_of_another_plan_is_refused_in_one_line(driver: Driver) -> None:
    driver.raises = TargetConflict("holds another plan; --overwrite", uri="out/b")
    result = run("a", "out/b")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: out/b: holds another plan; --overwrite"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {"a.weight": np.ones((8, 16), np.float32), "embed\x1b[2J": np.ones((4, 16), np.float32)}
    save_file({**tensors, "norm.weight": np.ones(4, np.float32)}, path)
    return path


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    driver: Driver, checkpoint: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("mixed_precision_layers: [embed, lm_head]\n")
    before = sorted(tmp_path.iterdir())
    result = run(checkpoint, tmp_path / "out", "--config", config, "--dry-run")
    assert result.exit_code == 0
    assert "3: 1 quantized, 2 kept" in result.stdout
    assert "embed\\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout
    assert "lm_head" in result.stdout  # a word that matches nothing is noted
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_as_json_is_the_summary(driver: Driver, checkpoint: Path, tmp_path: Path) -> None:
    values = json.loads(run(checkpoint, tmp_path / "out", "--dry-run", "--json").stdout)
    assert (values["totals"]["layers"], values["totals"]["shards"], values["totals"]["stored_nbytes"]) == (
        3,
        1,
        99,
    )
    assert values["target"] == {"state": "empty", "done": 0}
    rules = {layer["layer_name"]: (layer["quant_type"], layer["rule"]) for layer in values["layers"]}
    assert rules["norm.weight"] == ("none", "1-D")
    assert rules["a.weight"] == ("int8", "the default")
    assert {layer["stored_nbytes"] for layer in values["layers"]} == {7}


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (ShardsThere("started", 1), "1 of 1 shard done"),
        (ShardsThere("finished", 1), "finished, 1 of 1 shard done"),
        (ShardsThere("empty", 0), "nothing is there yet"),
    ],
)
def test_a_dry_run_says_what_is_done_at_the_target(
    driver: Driver, checkpoint: Path, there: ShardsThere, said: str
) -> None:
    driver.there = there
    shown = run(checkpoint, "out", "--dry-run").stdout
    assert re.search(f"target +{said}\n", shown)
