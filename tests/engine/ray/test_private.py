"""Ray's private names exist in the version that they were written for, and a run works without them in others."""

from __future__ import annotations

import logging

import pytest
from ray._private.node import Node
from ray._private.state import state

from arrowquant_dist.engine.ray import private
from tests.engine.ray.runs import Run, quiet_checksums
from tests.logged import Logged


@pytest.fixture
def without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_named", lambda _module, _name: None)
    monkeypatch.setattr(private, "_said", set())


@pytest.mark.parametrize("name", ["start_api_server", "start_monitor", "start_log_monitor"])
def test_this_ray_starts_processes_by_methods_that_can_be_left_out(name: str) -> None:
    before = getattr(Node, name)
    with private.without_needless_processes():
        assert getattr(Node, name)(None) is None
    assert getattr(Node, name) is before


@pytest.mark.parametrize("name", ["get_max_resources_from_cluster_config", "get_draining_nodes"])
def test_this_ray_answers_what_only_its_state_knows(name: str) -> None:
    assert callable(getattr(state, name))


def test_a_ray_without_one_of_the_methods_leaves_out_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later:
        def start_monitor(self) -> str:
            return "started"

    monkeypatch.setattr(private, "_named", lambda _module, _name: Later)
    with private.without_needless_processes():
        assert Later().start_monitor() is None
        assert not hasattr(Later, "start_api_server")
    assert Later().start_monitor() == "started"


@pytest.mark.usefixtures("without_names")
def test_a_ray_without_the_names_says_once_what_a_run_goes_without(logged: Logged) -> None:
    with logged.at_level(logging.WARNING):
        for _ in range(3):
            assert private.draining_nodes() == set()
            assert private.autoscaled_cpus() == 0
    assert [record.message.partition(": ")[2] for record in logged.records] == [
        "nodes about to go are used until they are gone",
        "workers are counted by the nodes present now",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("without_names")
def test_a_run_on_a_ray_without_the_names_is_the_same_run(run: Run) -> None:
    run.engine(None, workers=None)
    assert run.checksums() == quiet_checksums(run)
