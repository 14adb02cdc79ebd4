"""Ray's memory monitor kills a worker that takes too much memory: its shard is done again elsewhere, and the log says
why."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import psutil
import pytest

from tests.engine.ray.clusters import SmallCluster
from tests.engine.ray.greedy_actor import GREED_NBYTES, GreedyActor, greed
from tests.engine.ray.runs import Run, quiet_checksums
from tests.logged import Logged

_WORKERS_NBYTES = 1 << 30  # two of them, with room


@pytest.fixture
def cluster() -> Iterator[SmallCluster]:
    memory = psutil.virtual_memory()
    assert memory.available > 1.5 * GREED_NBYTES, "too little memory is free here"
    limit = memory.total - memory.available + _WORKERS_NBYTES + GREED_NBYTES // 4
    monitor = {"memory_usage_threshold": limit / memory.total, "memory_monitor_refresh_ms": 100}
    cluster = SmallCluster(nodes=2, **monitor)
    yield cluster
    cluster.stop()


@pytest.mark.slow
def test_a_worker_killed_for_its_memory_is_replaced(cluster: SmallCluster, run: Run, logged: Logged) -> None:
    greed(str(run.target)).touch()
    with logged.at_level(logging.INFO, "arrowquant_dist.shards"):
        run.engine(cluster.address, actor_class=GreedyActor)
    assert run.checksums() == quiet_checksums(run)
    lines = logged.shard_lines()
    # `stopped`: taken over from the other's queue.
    lost = [line["outcome"] for line in lines if line["outcome"] not in ("done", "stopped")]
    # Both nodes are on one machine, and the other one's monitor may find that its worker is to blame.
    assert lost in (["out of memory"], ["out of memory"] * 2)
    assert run.facts.shard_retries == len(lost)
