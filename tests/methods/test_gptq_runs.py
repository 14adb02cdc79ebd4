"""gptq from end to end: from a statistics folder to a dataset, with every engine, resumed, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.cli import app
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.driver import plan_only, quantize
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig, TargetConflict
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.plan import Plan, make_plan, open_side_inputs, plan_table
from arrowquant_dist.target.target import Target
from arrowquant_dist.worker.shard import ShardWorker, WorkerContext
from arrowquant_dist.worker.sinks.v2 import V2Parts
from tests.datasets import weights_of
from tests.methods.statistics_made import Parts, save_statistics, statistics
from tests.methods.test_gptq import decoded, quantized, spec_of
from tests.sources import save_checkpoint
from tests.target.drivers import start

pytestmark = pytest.mark.usefixtures("ticks")
RUN = RunConfig(block_bytes=64 << 10, workers=2)  # the larger layers are cut into row blocks
A, B, EXPERTS, EMBEDDING, UNSEEN = "a.weight", "b.weight", "mlp.experts.up_proj", "embed.weight", "z.weight"


def shape_of(layer: str) -> tuple[int, ...]:
    return {EXPERTS: (3, 100, 128), EMBEDDING: (200, 32)}.get(layer, (300, 128))


def tensors() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape_of(name), generator=made) for name in (A, B, EXPERTS, EMBEDDING, UNSEEN)}


def parts_of() -> dict[str, Parts]:
    experts = [statistics(100, 128, seed) for seed in range(3)]
    return {
        A: statistics(300, 128, 7, corrected=True),
        B: statistics(300, 128, 8),
        EXPERTS: {"hessian": np.stack([one["hessian"] for one in experts])},
        EMBEDDING: {"counts": np.ones(200, np.float32)},
        UNSEEN: {"unseen": np.empty(0, np.float32)},
    }


@pytest.fixture
def source(tmp_path: Path) -> str:
    return save_checkpoint(tmp_path / "source", tensors())


@pytest.fixture
def config(tmp_path: Path) -> QuantizationConfig:
    folder = save_statistics(tmp_path / "statistics", parts_of())
    return QuantizationConfig(
        "int4", per_channel=False, group_size=64, symmetric=False, method="gptq", hessians=folder
    )


def test_a_run_makes_what_the_layer_s_function_makes(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    outcome = quantize(source, str(tmp_path / "out"), config, RUN)
    weights, parts = tensors(), parts_of()
    with WeightLoader(str(tmp_path / "out")) as loader:
        for name in (A, B, EXPERTS, EMBEDDING, UNSEEN):
            is_seen = "hessian" in parts[name]
            spec = spec_of(method="gptq" if is_seen else "mse", row_dims=2 if name == EXPERTS else 1)
            expected = decoded(quantized(weights[name].numpy(), spec, parts[name] if is_seen else {}))
            np.testing.assert_array_equal(loader[name].numpy(), expected.astype(np.float32))
    instead = "mse instead of gptq for 1 layer, for which hessians has only"
    nothing = "and no statistics of inputs"
    expected_notes = {f"{instead} 'counts' {nothing}: {EMBEDDING}", f"{instead} 'unseen' {nothing}: {UNSEEN}"}
    assert expected_notes <= {*outcome.report.to_dict()["notes"]}
    assert expected_notes <= {*plan_only(source, str(tmp_path / "other"), config, RUN).notes}


@pytest.mark.parametrize("group_size", [64, 0])
def test_row_blocks_workers_and_engines_make_equal_datasets(
    source: str, config: QuantizationConfig, tmp_path: Path, group_size: int
) -> None:
    config = config.replace(group_size=group_size)
    runs = [RUN, RunConfig(block_bytes=1 << 20, workers=1)]
    if group_size:
        runs.append(RunConfig(block_bytes=100 << 10, engine="ray", workers=2))
    found = []
    for number, run in enumerate(runs):
        quantize(source, str(tmp_path / str(number)), config, run)
        with WeightLoader(str(tmp_path / str(number))) as loader:
            found.append({name: loader[name].numpy().tobytes() for name in (A, B, EXPERTS)})
    assert all(other == found[0] for other in found[1:])


def test_an_interrupted_run_is_carried_on_to_the_same_dataset(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    run = RUN.replace(shard_bytes=128 << 10)
    quantize(source, str(tmp_path / "whole"), config, run)

    def stop(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(BaseException):  # noqa: B017, PT011 - however the engine tells of it
        quantize(source, str(tmp_path / "out"), config, run, stop)
    quantize(source, str(tmp_path / "out"), config, run)
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")
    assert quantize(source, str(tmp_path / "out"), config, run).already_finished


def test_other_statistics_are_another_plan(source: str, config: QuantizationConfig, tmp_path: Path) -> None:
    quantize(source, str(tmp_path / "out"), config, RUN)
    save_statistics(tmp_path / "statistics", {**parts_of(), B: statistics(300, 128, 9)})
    with pytest.raises(TargetConflict, match="side input changed"):
        quantize(source, str(tmp_path / "out"), config, RUN)


def test_statistics_that_change_after_the_plan_are_noticed(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    checkpoint, side_inputs = open_checkpoint(source), open_side_inputs(config, RUN.source_storage)
    plan = make_plan(checkpoint, config, RUN, side_inputs)
    start(Target.open(str(tmp_path / "out")), plan_table(plan))
    files = side_inputs["hessians"].files
    sink = V2Parts(plan.compression)
    context = WorkerContext(str(tmp_path / "out"), plan.fingerprint, sink, checkpoint.files, side_files=files)
    save_statistics(tmp_path / "statistics", {**parts_of(), B: statistics(300, 128, 9)})
    with pytest.raises(InvalidCheckpoint, match="changed since the plan was made"):
        _run_all(plan, context)


def test_statistics_that_are_not_finished_are_refused(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    (tmp_path / "statistics" / "calibration.json").unlink()
    with pytest.raises(InvalidConfig, match=r"hessians has no calibration\.json, which is written last"):
        quantize(source, str(tmp_path / "out"), config, RUN)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            '{"format_version": 3}',
            r"calibration\.json of format_version 3, but this release reads 2; update this package",
        ),
        (
            '{"format_version": 1}',
            r"calibration\.json of format_version 1, but this release reads 2; run the command that makes",
        ),
        (
            '{"format_version": true}',
            "of format_version None, but this release reads 2; run the command that makes",
        ),
        ('{"format_version": 2}', "its `weights` do not say which model they are of; run the command"),
        ("{}", "of format_version None"),
        ("[1]", r"calibration\.json that is damaged; run the command that makes"),
        ('{"format_version": 2, "weigh', r"calibration\.json that is damaged"),
        ("\0" * 40, r"calibration\.json that is damaged"),
    ],
)
def test_statistics_of_another_version_are_refused(
    source: str, config: QuantizationConfig, tmp_path: Path, record: str, message: str
) -> None:
    (tmp_path / "statistics" / "calibration.json").write_text(record)
    with pytest.raises((InvalidConfig, InvalidCheckpoint), match=message):
        quantize(source, str(tmp_path / "out"), config, RUN)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"method": "mse"}, {"overrides": [LayerOverride("*", method="mse")]}])
def test_statistics_that_nothing_is_made_of_are_noted(
    source: str, config: QuantizationConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    note = "hessians is not used: no layer that it has statistics of is quantized by gptq or counted"
    plan = plan_only(source, str(tmp_path / "out"), config.replace(**settings), RUN)
    assert note in plan.notes
    assert note not in plan_only(source, str(tmp_path / "out"), config, RUN).notes


def test_statistics_of_layers_that_another_config_quantized_are_noted(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    by = {key: value for key, value in config.to_dict().items() if key != "hessians"}
    record = {"format_version": 2, "weights": {}, "config": by}
    (tmp_path / "statistics" / "calibration.json").write_text(json.dumps(record))
    other = config.replace(quant_type="int3", overrides=[LayerOverride("a.weight", group_size=32)])
    note = "hessians were collected from layers quantized by another config (quant_type, overrides)"
    assert any(found.startswith(note) for found in plan_only(source, str(tmp_path / "out"), other, RUN).notes)
    plain = plan_only(source, str(tmp_path / "out"), config, RUN)
    assert not any("another config" in found for found in plain.notes)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, r"hessians has no tensor 'b\.weight\.hessian'"),
        (statistics(300, 64), r"'b\.weight\.hessian' as \[64, 64\] of float32"),
        (
            {**statistics(300, 128), "residual": np.zeros((5, 128), np.float32)},
            r"'b\.weight\.residual' as \[5, 128\] of float32",
        ),
    ],
)
def test_statistics_of_another_model_are_refused_by_layer(
    source: str, config: QuantizationConfig, tmp_path: Path, parts: Parts, message: str
) -> None:
    save_statistics(tmp_path / "statistics", {**parts_of(), B: parts})
    with pytest.raises(InvalidConfig, match=message) as raised:
        quantize(source, str(tmp_path / "out"), config, RUN)
    assert raised.value.layer == B
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_them(source: str, config: QuantizationConfig, tmp_path: Path) -> None:
    command = [
        "quantize",
        source,
        str(tmp_path / "out"),
        "--quant",
        "int4",
        "--hessians",
        str(config.hessians),
    ]
    assert CliRunner().invoke(app, [*command, "--json"]).exit_code == 0
    quantize(source, str(tmp_path / "same"), config.replace(group_size=128), RunConfig())
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "same")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["config"]["method"], manifest["config"]["hessians"]) == ("gptq", config.hessians)


def _run_all(plan: Plan, context: WorkerContext) -> None:
    worker = ShardWorker(context)
    for shard in plan.shards:
        worker.run(shard, lambda _: None, lambda: False)
