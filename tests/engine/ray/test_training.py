"""Workers that train together: the room they need, and the message if there is not enough."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from arrowquant_dist import machine
from arrowquant_dist.engine.ray.cluster import most_cpus
from arrowquant_dist.engine.ray.conductor import Conductor, TrainingSetup
from arrowquant_dist.engine.ray.training import RayTraining
from arrowquant_dist.errors import InvalidConfig, MissingDependency

GIB = 1 << 30


@pytest.mark.parametrize(
    ("workers", "nodes", "memory", "cpus"),
    [
        (2, [{"CPU": 8.0}], None, 4),
        (3, [{"CPU": 8.0}, {"CPU": 4.0}], None, 4),
        (4, [{"CPU": 8.0}, {"CPU": 4.0}, {}], None, 2),
        (4, [{"CPU": 2.0}], None, 0),
        (2, [{"CPU": 8.0, "memory": 3.0 * GIB}, {"CPU": 2.0, "memory": 3.0 * GIB}], 2 * GIB, 2),
        (2, [{"CPU": 8.0, "memory": 3.0 * GIB}], 2 * GIB, 0),
        (1, [], None, 0),
    ],
)
def test_workers_share_the_cpus_that_there_are(
    workers: int, nodes: list[dict[str, float]], memory: int | None, cpus: int
) -> None:
    assert most_cpus(workers, nodes, memory) == cpus


def test_more_than_this_machine_holds_is_refused_before_a_ray_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "memory_nbytes", lambda: 5 * GIB)
    said = "each of 3 workers needs 2048 MiB of memory to train, but this machine has only 5120 MiB"
    work: Any = None
    with pytest.raises(InvalidConfig, match=said):
        RayTraining(None, 3, attempts=1, deadline=None).run(work, 2 * GIB, 3 * GIB, print)


def test_a_ray_train_that_is_not_there_is_one_sentence_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray.train", None)
    setup: Any = TrainingSetup(None, "", b"", 2, {"CPU": 1}, 1, None, "", {})
    with pytest.raises(MissingDependency, match=r"needs a package .*pip install 'arrowquant-dist\[train\]'"):
        Conductor().conduct(setup)
