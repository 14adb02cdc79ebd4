"""The Ray engine on a cluster that loses workers and nodes: everything is committed once, whatever is lost."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch

from arrowquant_dist.errors import MissingDependency, StorageError, UnquantizableWeights
from tests.engine.ray.clusters import SmallCluster, name_of
from tests.engine.ray.held_actor import OtherVersion
from tests.engine.ray.runs import QUICK, SHARDS, Run, quiet_checksums, start_run, total
from tests.held_worker import faults
from tests.logged import Logged
from tests.processes import actor_processes, is_alive
from tests.waiting import until

STEALING = replace(QUICK, deadline=6000.0, stall=50.0, farewell=2.0)  # a frozen worker does not say farewell


@pytest.fixture(scope="module")
def nodes() -> Iterator[SmallCluster]:
    cluster = SmallCluster(nodes=2)
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(nodes: SmallCluster) -> SmallCluster:
    """Two nodes, whatever the test before did to them."""
    nodes.fill(2)
    return nodes


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert not ray.is_initialized()
    until(lambda: not actor_processes())


def assert_whole(run: Run, killed: int = 0) -> None:
    """Every shard is committed once, with the bytes of an undisturbed run, and was told once. killed: workers."""
    assert run.checksums() == quiet_checksums(run)
    shards, blocks = len(run.plan.shards), list(run.plan.blocks)
    assert shards <= run.parts() <= shards + killed
    assert total(run.events) == (len(blocks), sum(b.source_nbytes for b in blocks), shards)


def test_two_nodes_share_the_work(cluster: SmallCluster, run: Run) -> None:
    with run.at_work(cluster.address):
        run.wait_alive(2)
        run.pass_seconds(100.0)  # while both are at work
    assert_whole(run)
    assert all(name_of(node, run.facts.nodes) for node in cluster.nodes)
    assert (run.facts.shard_retries, run.facts.stolen) == (0, 0)
    assert run.facts.worker_seconds > 2 * 100
    assert max(event.workers_alive for event in run.events) == 2


def test_a_killed_worker_is_replaced_and_its_shard_done_again(cluster: SmallCluster, run: Run) -> None:
    with run.at_work(cluster.address, after=3):
        os.kill(actor_processes()[0].pid, signal.SIGKILL)
        run.wait_alive(1)
        run.wait_alive(2)
    assert_whole(run, killed=1)
    assert run.facts.shard_retries == 1
    assert run.facts.wasted_seconds > 0


@pytest.mark.slow
def test_a_lost_node_is_done_without_and_a_new_one_is_used(cluster: SmallCluster, run: Run) -> None:
    with run.at_work(cluster.address, after=2):
        cluster.lose(cluster.nodes[0])
        run.wait_alive(1)
        new = cluster.add()
        run.wait_alive(2)
    assert_whole(run, killed=1)
    assert name_of(new, run.facts.nodes)
    assert run.facts.shard_retries == 1


@pytest.mark.slow
def test_a_preempted_node_gets_no_more_work_and_costs_no_attempt(cluster: SmallCluster, run: Run) -> None:
    draining = cluster.nodes[0]
    with run.at_work(cluster.address, after=2, patience=replace(QUICK, attempts=1)):
        cluster.drain(draining)
        run.pass_seconds(0.0)
        run.go_on(SHARDS - 4)
        run.wait_alive(1)  # it ended what it had in hand, and went
        assert len(run.begun) == len({*run.begun})  # its second shard was taken back before it was begun
        cluster.lose(draining)
        new = cluster.add()
        run.wait_alive(2)
    assert_whole(run)
    assert name_of(new, run.facts.nodes)
    assert run.facts.shard_retries == 0


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_after_the_deadline(cluster: SmallCluster, run: Run) -> None:
    with run.at_work(cluster.address, after=2, patience=replace(QUICK, deadline=100.0)):
        hung = _freeze()
        run.pass_seconds(60.0)
        assert is_alive(hung.pid)
        for _ in range(2):  # its last answer may have been heard late
            run.go_on_by_one()  # the other one, which is not taken for hung
            run.pass_seconds(60.0)
    assert_whole(run, killed=1)
    assert run.facts.shard_retries == 1
    assert run.facts.stolen == 0
    assert run.facts.wasted_seconds > 100.0
    until(lambda: not is_alive(hung.pid))


@pytest.mark.slow
def test_at_the_tail_an_idle_worker_takes_the_shard_of_one_that_hangs(
    cluster: SmallCluster, run: Run
) -> None:
    with run.at_work(cluster.address, after=SHARDS - 4, patience=STEALING):
        _freeze()
        _stall(run)
    assert_whole(run, killed=1)
    assert run.facts.stolen == 1
    assert run.facts.shard_retries == 0


def _freeze() -> psutil.Process:
    """Stops an actor in its tracks: it answers nothing, and is not dead."""
    process = actor_processes()[0]
    os.kill(process.pid, signal.SIGSTOP)
    return process


def _stall(run: Run) -> None:
    """What does not move now is slow."""
    for _ in range(2):  # its last answer may have been heard late
        run.pass_seconds(2 * STEALING.stall)


@pytest.mark.slow
def test_a_shard_queued_at_a_worker_that_hangs_is_done_by_another(cluster: SmallCluster, run: Run) -> None:
    """More shards wait than there are workers, so the frozen one has a second in hand."""
    with run.at_work(cluster.address, after=1, patience=STEALING):
        _freeze()
        _stall(run)
    assert_whole(run, killed=1)
    assert run.facts.stolen == 1  # the one it was at; the queued one had not begun


@pytest.mark.slow
def test_storage_out_of_reach_is_tried_again(cluster: SmallCluster, run: Run) -> None:
    faults(str(run.target)).mkdir()
    for fault in ("3-1", "3-2", "7-1"):
        (faults(str(run.target)) / fault).touch()
    run.engine(cluster.address, patience=replace(QUICK, attempts=3))
    assert_whole(run)
    assert run.facts.shard_retries == 3


@pytest.mark.slow
def test_a_shard_whose_storage_stays_away_fails_the_run_after_the_rest(
    cluster: SmallCluster, run: Run
) -> None:
    faults(str(run.target)).mkdir()
    for number in range(9):
        (faults(str(run.target)) / f"3-{number}").touch()
    with pytest.raises(StorageError, match="the server is away"):
        run.engine(cluster.address, patience=replace(QUICK, attempts=3))
    assert run.commits == run.parts() == SHARDS - 1
    assert len([*faults(str(run.target)).iterdir()]) == 9 - 3


@pytest.mark.slow
def test_a_bad_layer_fails_the_run_after_the_rest_and_is_not_tried_again(
    cluster: SmallCluster, tmp_path: Path, logged: Logged
) -> None:
    weights = {f"layers.{i}.weight": torch.ones(256, 256) for i in range(6)}
    weights["layers.2.weight"][3, 5] = torch.nan
    run = start_run(tmp_path, weights)
    with (
        logged.at_level(logging.INFO, "arrowquant_dist.shards"),
        pytest.raises(UnquantizableWeights, match=r"\[3, 5\]") as raised,
    ):
        run.engine(cluster.address)
    assert raised.value.layer == "layers.2.weight"
    assert run.commits == run.parts() == 5
    lines = logged.shard_lines()
    # An idle worker may take over what is queued at the other, whose attempt then ends in another way.
    ends = sorted((line["shard"], line["outcome"]) for line in lines if line["outcome"] in ("done", "failed"))
    assert ends == [(shard, "failed" if shard == 2 else "done") for shard in range(6)]
    failed = next(line for line in lines if line["outcome"] == "failed")
    assert "layers.2.weight" in failed["error"]


def test_a_node_with_another_version_of_the_package_is_refused(cluster: SmallCluster, run: Run) -> None:
    with pytest.raises(MissingDependency, match=r"another version .* install the same"):
        run.engine(cluster.address, actor_class=OtherVersion)
    assert run.commits == 0


def test_the_ray_of_the_caller_is_used_and_stays(cluster: SmallCluster, run: Run) -> None:
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        run.engine(None)
        assert ray.is_initialized()
        assert_whole(run)
        until(lambda: not actor_processes())
    finally:
        ray.shutdown()


def test_a_shard_is_a_line_of_json(cluster: SmallCluster, run: Run, logged: Logged) -> None:
    with logged.at_level(logging.INFO, "arrowquant_dist.shards"):
        run.engine(cluster.address, 1)  # of two, one may take over what is queued at the other
    lines = logged.shard_lines()
    assert sorted(line["shard"] for line in lines) == list(range(SHARDS))
    for line in lines:
        assert (line["attempt"], line["outcome"], line["layers"], line["row_blocks"]) == (1, "done", 1, 4)
        assert line["source_bytes"] == line["read_bytes"] == 256 * 256 * 4
        assert line["written_bytes"] > 256 * 256 / 4
        assert set(line["seconds"]) == {"read", "quantize", "write", "compile"}
        assert line["worker_seconds"] >= sum(line["seconds"].values()) * 0.5
    assert max(len(record.message) for record in logged.records) < 500
