"""cluster/simulate.py: real shapes, the program's own plans, and run times that follow from arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import simulate
from simulation.events import Result, Simulation
from simulation.rates import Cluster, Rates
from simulation.shapes import MODELS, checkpoint_of
from simulation.work import Work, work_of

from arrowquant_dist.config import QuantizationConfig, RunConfig
from tests.conftest import CHECKOUT

RATES = Rates(
    params_per_second=1e6,
    shard_seconds=0.0,
    read_cpu=0.0,
    write_cpu=0.0,
    dispatch_seconds=0.0,
    dispatch_seconds_per_worker=0.0,
    actor_seconds=5.0,
    planning_seconds=0.01,
    reducing_seconds=0.02,
)
QUIET = Cluster(network=0.0, node_seconds=0.0, preemptions=0.0, jitter=0.0)


def work(shards: int, params: float = 1e6) -> Work:
    """Equal shards of a second each, a layer and a row block each."""
    size, one = np.full(shards, params), np.ones(shards)
    return Work(size, one, 2 * size, size, one, one, size, shards)


def run(of: Work, workers: int, rates: Rates = RATES, cluster: Cluster = QUIET) -> Result:
    return Simulation(of, rates, cluster, workers).run()


@pytest.mark.parametrize(
    ("model", "tensors", "params"),
    [("8B", 291, 8_030_261_248), ("70B", 723, 70_553_706_496), ("405B", 1137, 405_853_388_800)],
)
def test_the_llamas_have_the_published_tensors_and_weights(model: str, tensors: int, params: int) -> None:
    layers = checkpoint_of(MODELS[model]()).layers
    assert len(layers) == tensors
    assert sum(layer.num_params for layer in layers) == params


def test_deepseek_has_671_b_weights_and_its_mtp_layer_in_float8() -> None:
    layers = checkpoint_of(MODELS["671B"]()).layers
    main = [layer for layer in layers if not layer.name.startswith("model.layers.61.")]
    assert sum(layer.num_params for layer in main) == 671_026_419_200
    assert sum(layer.num_params for layer in layers) == 684_489_845_504
    assert 688e9 < sum(layer.nbytes for layer in layers) < 690e9


def test_the_work_is_that_of_the_programs_own_plan() -> None:
    run_config = RunConfig(shard_bytes=1 << 30)
    found = work_of(MODELS["8B"](), QuantizationConfig("int8"), run_config)
    assert found.params.sum() == 8_030_261_248
    assert found.read.sum() == 2 * 8_030_261_248
    assert list(found.params) == sorted(found.params, reverse=True)
    assert found.gets.sum() >= found.read.sum() / run_config.transfer.range_bytes


def test_one_worker_takes_the_sum_and_two_take_half() -> None:
    start_and_end = 0.01 * 100 + 5 + 0.02 * 100
    assert run(work(100), 1).seconds == pytest.approx(start_and_end + 100)
    assert run(work(100), 2).seconds == pytest.approx(start_and_end + 50)
    assert run(work(100), 2).efficiency == pytest.approx(1)


def test_more_workers_than_shards_are_not_used() -> None:
    assert run(work(3), 64).workers == 3


def test_the_tail_is_seen_where_shards_are_few() -> None:
    result = run(work(5), 4)
    assert result.running_seconds == pytest.approx(2)
    assert result.bound == "tail"
    assert result.shares["tail"] == pytest.approx(3 / 8)


def test_a_slow_driver_is_the_bound_and_as_slow_as_it_is() -> None:
    result = run(work(200), 50, replace(RATES, dispatch_seconds=0.1))
    assert result.running_seconds >= 200 * 0.1
    assert result.bound == "driver"
    assert result.driver_busy > 0.9


def test_a_request_limit_is_kept_whatever_the_number_of_workers() -> None:
    cluster = replace(QUIET, network=1e12, latency=0.0, gets=2.0)
    result = run(work(200), 50, cluster=cluster)
    assert result.running_seconds >= 200 / 2.0
    assert result.bound == "requests"


def test_a_nodes_network_is_shared_by_its_workers() -> None:
    cluster = replace(QUIET, network=1e6, latency=0.0, workers_per_node=4)
    result = run(work(16), 4, cluster=cluster)
    assert result.running_seconds >= 16 * 2e6 / 1e6
    assert result.bound == "storage"


def test_lost_nodes_cost_time_and_no_shard() -> None:
    cluster = replace(QUIET, preemptions=60.0, node_seconds=10.0, workers_per_node=2)
    calm, stormy = run(work(400), 8), run(work(400), 8, cluster=cluster)
    assert stormy.lost_shards > 0
    assert stormy.seconds > calm.seconds
    assert stormy.shares["working"] * stormy.running_seconds * 8 == pytest.approx(400)


def test_shares_add_up() -> None:
    for workers in (1, 7, 64):
        result = run(work(300), workers, cluster=Cluster())
        assert sum(result.shares.values()) == pytest.approx(1)


def test_the_command_prints_a_row_for_each_number_of_workers() -> None:
    script = CHECKOUT / "cluster" / "simulate.py"
    command = [sys.executable, str(script), "--model", "671B", "--workers", "8,256"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "684 B weights" in shown
    assert [line.split("|")[1].strip() for line in shown.splitlines() if line[:3] in ("| 8", "| 2")] == [
        "8",
        "256",
    ]


def test_json_has_the_shares(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--model", "8B", "--workers", "2", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert set(result["shares"]) == {"working", "storage", "requests", "driver", "lost nodes", "tail"}


@pytest.mark.parametrize("wrong", [["--workers", "two"], ["--shard-bytes", "1 byte"], ["--quant", "int5"]])
def test_bad_input_is_one_clear_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--model", "8B", *wrong]) == 2
    assert "error:" in capsys.readouterr().err
