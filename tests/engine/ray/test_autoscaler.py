"""Ray's own autoscaler: a run begins on a cluster without workers, gets the nodes it needs, and releases them at its
end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datasets import weights_of
from tests.engine.ray.autoscaled import AutoscaledCluster
from tests.integration.program import end, start
from tests.waiting import until

NODES = 2
CONFIG = "quant_type: int8\nrun: {block_bytes: 1MiB, shard_bytes: 1MiB}\n"


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscaledCluster]:
    cluster = AutoscaledCluster(tmp_path_factory.mktemp("autoscaled"), NODES)
    yield cluster
    cluster.stop()


@pytest.mark.slow
def test_a_run_gets_all_nodes_that_there_may_be_and_they_go_with_it(
    cluster: AutoscaledCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More workers are asked for than there will be: this autoscaler does not say how many it may start."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    quantize = ("quantize", "minilm", str(tmp_path / "target"), "--config", str(config))
    assert cluster.nodes == 0
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    driver = start(*quantize, "--address", cluster.address)
    until(lambda: cluster.nodes == NODES)
    done = end(driver)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "target/report/report.json").read_text())
    assert report["run"]["engine"] == "ray"
    cluster.end_idle_nodes()
    until(lambda: cluster.nodes == 0)

    quiet = ("quantize", "minilm", str(tmp_path / "quiet"), "--config", str(config), "--engine", "inline")
    assert end(start(*quiet)).returncode == 0
    assert weights_of(tmp_path / "target") == weights_of(tmp_path / "quiet")
