"""A cluster that has no workers at first: what it shows of a run, and what a run costs it."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
import ray
import torch

from arrowquant_dist.engine.ray.actor import ShardActor
from arrowquant_dist.engine.ray.cluster import UNKNOWN_CLUSTER_WORKERS
from arrowquant_dist.errors import PartialRun
from tests.cluster.dashboard import series
from tests.engine.ray.clusters import SmallCluster
from tests.engine.ray.runs import QUICK, Run, quiet_checksums, start_run, total
from tests.logged import Logged
from tests.waiting import until

# Of what did not happen in a run nothing is exported: a counter begins to be there when it first counts.
UNHEARD_OF = {
    "ray_arrowquant_request_retries_total",
    "ray_arrowquant_shard_retries_total",
    "ray_arrowquant_shards_stolen_total",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SmallCluster]:
    cluster = SmallCluster(nodes=0)
    yield cluster
    cluster.stop()


@pytest.fixture
def grown(cluster: SmallCluster) -> SmallCluster:
    """With a node."""
    if not cluster.nodes:
        cluster.add()
    return cluster


@pytest.mark.slow
def test_a_cluster_that_never_has_room_is_a_clear_error_in_time(cluster: SmallCluster, run: Run) -> None:
    def wait_for_room() -> None:
        with run.at_work(cluster.address, patience=replace(QUICK, placement=900.0)):
            run.wait_alive(0)
            run.pass_seconds(600.0)
            assert run.is_at_work
            run.pass_seconds(300.0)

    with pytest.raises(PartialRun, match=r"no node .* 1 CPU and 256 MiB.* 1 node the .* has 0 CPUs"):
        wait_for_room()


@pytest.mark.slow
def test_a_cluster_that_grows_from_zero_begins_with_its_first_node(
    cluster: SmallCluster, run: Run, logged: Logged
) -> None:
    """Seven more actors are asked for than there is room for: they keep no shard from the one that is there."""
    with run.at_work(cluster.address, workers=None):
        run.wait_alive(0)
        run.pass_seconds(600.0)
        cluster.add()
    assert run.checksums() == quiet_checksums(run)
    assert max(event.workers_alive for event in run.events) == 1
    assert f"asking for {UNKNOWN_CLUSTER_WORKERS} workers" in logged.text


@pytest.mark.slow
def test_the_dashboard_s_metrics_are_where_prometheus_looks(grown: SmallCluster, run: Run) -> None:
    wanted = {'phase="quantize"', *series()} - UNHEARD_OF
    shown = ""

    def is_shown() -> bool:
        nonlocal shown
        shown = _exported()
        return all(metric in shown for metric in wanted)

    with run.at_work(grown.address, after=3, workers=1):
        until(is_shown)
    assert "layers.0" not in shown  # no name of a layer is a tag


def _exported() -> str:
    nodes = ray.nodes() if ray.is_initialized() else []
    urls = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]
    return "".join(urlopen(url).read().decode() for url in urls)  # noqa: S310 - the agents of this test


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "shard_bytes"), [(1500, 64 << 20), (64, 300 << 10)])
def test_the_object_store_holds_less_than_a_kilobyte_a_layer(
    grown: SmallCluster, tmp_path: Path, layers: int, shard_bytes: int
) -> None:
    """1500 layers in one shard: its description is more than Ray sends along with a call, and goes to the store."""
    name = "model.language_model.layers.{}.mlp.experts.down_proj.weight"
    weights = {name.format(i): torch.full((64, 64), 0.5 + i) for i in range(layers)}
    run = start_run(tmp_path, weights, shard_bytes=shard_bytes)
    assert max(len(pickle.dumps(shard)) / len(shard.blocks) for shard in run.plan.shards) < 1000
    ray.init(grown.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        before = _stored_nbytes()
        run.engine(None, 1, actor_class=ShardActor)
        used = _stored_nbytes() - before
    finally:
        ray.shutdown()
    assert total(run.events)[2] == layers
    assert 0 < used / layers <= 1000
    assert (used > 100_000) == (len(run.plan.shards) == 1)


def _stored_nbytes() -> int:
    """Bytes of all objects ever made in the nodes' stores."""
    from ray._private.internal_api import node_stats

    alive = [node for node in ray.nodes() if node["Alive"]]
    stats = [
        node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
        for node in alive
    ]
    return sum(int(each.store_stats.cumulative_created_bytes) for each in stats)
