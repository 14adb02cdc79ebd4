"""A Ray cluster loses actors, nodes and drivers: whatever is lost, and when, the dataset is that of an undisturbed
run."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest

from arrowquant_dist import RunConfig
from arrowquant_dist.driver import Outcome, quantize
from tests.chaos.cluster import Blow, Nodes, kill_one
from tests.chaos.conftest import Note
from tests.chaos.runs import (
    CONFIG,
    RUN,
    TRANSFER,
    Source,
    Weights,
    assert_whole,
    assert_whole_in,
)
from tests.integration.program import commits, end, start, wait_for
from tests.processes import actor_processes
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import Fault, Kind
from tests.servers.fixtures import Bucket
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import until

MOMENTS = 20
_QUICK_MOMENTS = (1,)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def cluster(nodes: Nodes) -> Nodes:
    """Two worker nodes without actors, whatever the test before did to them."""
    nodes.fill(2)
    until(lambda: not actor_processes())  # an earlier run's are not this one's
    return nodes


@pytest.fixture
def run(cluster: Nodes) -> RunConfig:
    """Shards of one row block, on two actors."""
    return RUN.replace(engine="ray", address=cluster.address, shard_bytes=1 << 20, workers=2)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "target"
    shutil.rmtree(tmp_path / "target", ignore_errors=True)


CONFIG_FILE = """
quant_type: int8
run:
  block_bytes: 1MiB
  shard_bytes: 1MiB
  workers: %d
"""


def command(source: str, target: str, config: Path, cluster: Nodes, workers: int) -> tuple[str, ...]:
    config.write_text(CONFIG_FILE % workers)
    engine = ("--engine", "ray", "--address", cluster.address)
    return "quantize", source, target, "--config", str(config), *engine


def disturbed(source: Source, target: Path, run: RunConfig, blow: Blow) -> Outcome:
    with blow:
        outcome = quantize(source.uri, str(target), CONFIG, run, blow.hold_back)
    assert commits(target) == source.shards
    blow.assert_landed(source.shards)
    return outcome


def at(seed: int, strike: Callable[[], None], target: Path, source: Source) -> Blow:
    """At a random moment of the first two thirds: after a commit, within the time that a shard takes."""
    moment = Random(seed)  # noqa: S311
    after = moment.randrange(1, source.shards * 2 // 3)
    return Blow(strike, lambda: commits(target), after, delay=moment.random() * 0.005)


def moments() -> list[object]:
    return [
        pytest.param(seed, marks=() if seed in _QUICK_MOMENTS else (pytest.mark.slow,))
        for seed in range(MOMENTS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", moments())
def test_an_actor_killed_at_a_random_moment(
    run: RunConfig, long_checkpoint: Source, long_quiet: Weights, target: Path, note: Note, seed: int
) -> None:
    blow = at(seed, lambda: kill_one(seed), target, long_checkpoint)
    disturbed(long_checkpoint, target, run, blow)
    note(f"killed after {blow.struck_after} commits")
    assert_whole(target, long_quiet)


@pytest.mark.slow
def test_an_actor_killed_as_soon_as_it_is_there(
    run: RunConfig, long_checkpoint: Source, long_quiet: Weights, target: Path, note: Note
) -> None:
    blow = Blow(lambda: kill_one(0), lambda: commits(target), 0)
    disturbed(long_checkpoint, target, run, blow)
    assert blow.struck_after == [0]
    note("killed while it started")
    assert_whole(target, long_quiet)


@pytest.mark.slow
def test_actors_killed_again_and_again(
    run: RunConfig, long_checkpoint: Source, long_quiet: Weights, target: Path, note: Note
) -> None:
    """Each time there are more commits: of the two, of the other one, of those that take their places."""
    moments = [long_checkpoint.shards * sixths // 6 for sixths in range(1, 5)]
    numbers = count()
    blow = Blow(lambda: kill_one(next(numbers)), lambda: commits(target), 1, *moments)
    disturbed(long_checkpoint, target, run.replace(shard_attempts=20), blow)
    note(f"killed after {blow.struck_after} commits")
    assert_whole(target, long_quiet)


@pytest.mark.slow
def test_a_node_removed_hard_and_another_one_added(
    cluster: Nodes, long_checkpoint: Source, long_quiet: Weights, target: Path, note: Note
) -> None:
    driver = start(*command(long_checkpoint.uri, str(target), target.with_name("c.yaml"), cluster, 2))
    wait_for(lambda: commits(target) >= 5, driver)
    cluster.remove_hard()
    lost_after = commits(target)
    assert lost_after < long_checkpoint.shards
    note(f"node lost after {lost_after} commits")
    cluster.fill(2)
    done = end(driver)
    assert done.returncode == 0, done.stderr
    assert_whole(target, long_quiet)


@pytest.mark.slow
def test_a_node_removed_hard_is_not_missed_for_long(
    cluster: Nodes, run: RunConfig, long_checkpoint: Source, long_quiet: Weights, target: Path, note: Note
) -> None:
    """Nothing takes its place: the other node does it all."""
    blow = Blow(cluster.remove_hard, lambda: commits(target), 20)
    disturbed(long_checkpoint, target, run, blow)
    note(f"node lost after {blow.struck_after} commits")
    assert_whole(target, long_quiet)


@pytest.mark.slow
def test_a_node_preempted(
    cluster: Nodes, run: RunConfig, long_checkpoint: Source, long_quiet: Weights, target: Path, note: Note
) -> None:
    blow = Blow(lambda: cluster.preempt(seconds=0.2), lambda: commits(target), 1)
    disturbed(long_checkpoint, target, run, blow)
    note(f"told, and lost after {blow.struck_after} commits")
    assert_whole(target, long_quiet)


@pytest.mark.slow
def test_an_actor_that_hangs(
    run: RunConfig, long_checkpoint: Source, long_quiet: Weights, target: Path, note: Note
) -> None:
    stopped = []

    def strike() -> None:
        stopped.append(actor_processes()[0])
        stopped[0].send_signal(signal.SIGSTOP)

    blow = at(33, strike, target, long_checkpoint)
    try:
        disturbed(long_checkpoint, target, run.replace(shard_deadline=3.0), blow)
    finally:
        for process in stopped:
            if process.is_running():
                process.kill()
    note(f"stopped after {blow.struck_after} commits")
    assert_whole(target, long_quiet)


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 20])
def test_a_driver_killed_and_started_again(
    cluster: Nodes, long_checkpoint: Source, long_quiet: Weights, target: Path, note: Note, after: int
) -> None:
    arguments = command(long_checkpoint.uri, str(target), target.with_name("c.yaml"), cluster, 2)
    first = start(*arguments)
    wait_for(lambda: commits(target) >= after, first)
    first.kill()
    end(first)
    assert not (target / "manifest.json").exists()
    note(f"killed after {commits(target)} commits")
    again = end(start(*arguments))
    assert again.returncode == 0, again.stderr
    assert_whole(target, long_quiet)


@pytest.mark.slow
def test_two_drivers_on_one_target(
    cluster: Nodes, checkpoint: Source, quiet: Weights, tmp_path: Path, note: Note
) -> None:
    target = tmp_path / "target"
    arguments = command(checkpoint.uri, str(target), tmp_path / "c.yaml", cluster, 1)
    both = [end(process) for process in [start(*arguments), start(*arguments)]]
    note("exit codes {} and {}".format(*(done.returncode for done in both)))
    assert [done.returncode for done in both] == [0, 0], [done.stderr for done in both]
    assert_whole(target, quiet)


def away_commits(bucket: Bucket) -> int:
    return len(bucket.objects.sizes(f"{bucket.uri}/target/run/commits"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [41, 42, 43])
def test_an_actor_killed_between_a_source_and_a_target_that_fail_too(
    run: RunConfig,
    checkpoint: Source,
    stored: str,
    seaweedfs: SeaweedFS,
    bucket: Bucket,
    quiet: Weights,
    tmp_path: Path,
    note: Note,
    seed: int,
) -> None:
    faults = [
        Fault(Kind.SLOW_DOWN, probability=0.05),
        Fault(Kind.RESET_BODY, "GET", probability=0.03),
        Fault(Kind.LOST_RESPONSE, "PUT|POST", probability=0.05),
    ]
    with FaultProxy(seaweedfs.port, *faults, seed=seed) as proxy:
        options = seaweedfs.options_at(proxy.endpoint_url)
        moment = Random(seed)  # noqa: S311
        after = moment.randrange(1, checkpoint.shards // 2)
        blow = Blow(lambda: kill_one(seed), lambda: away_commits(bucket), after)
        with blow:
            storing = run.replace(storage_options=options)
            quantize(stored, f"{bucket.uri}/target", CONFIG, storing, blow.hold_back)
        blow.assert_landed(checkpoint.shards)
        note(f"{len(proxy.injected)} of {proxy.requests} requests failed")
    note(f"killed after {blow.struck_after} commits")
    assert_whole_in(
        bucket.objects, f"{bucket.uri}/target", bucket.storage_options, quiet, tmp_path / "downloaded"
    )


@pytest.mark.slow
def test_a_node_lost_between_source_and_target_on_a_server(
    cluster: Nodes,
    run: RunConfig,
    checkpoint: Source,
    stored: str,
    bucket: Bucket,
    quiet: Weights,
    tmp_path: Path,
    note: Note,
) -> None:
    blow = Blow(cluster.remove_hard, lambda: away_commits(bucket), 10)
    changed = run.replace(storage_options=bucket.storage_options, transfer=TRANSFER)
    with blow:
        quantize(stored, f"{bucket.uri}/target", CONFIG, changed, blow.hold_back)
    blow.assert_landed(checkpoint.shards)
    note(f"node lost after {blow.struck_after} commits")
    assert_whole_in(
        bucket.objects, f"{bucket.uri}/target", bucket.storage_options, quiet, tmp_path / "downloaded"
    )


def with_credentials(config: Path, server: SeaweedFS) -> None:
    """Actors do not inherit the driver's environment: the config file says where the server is."""
    options = json.dumps(server.storage_options)  # JSON is YAML
    config.write_text(f"{config.read_text()}  storage_options: {options}\n")


@pytest.mark.slow
def test_two_drivers_on_one_target_on_a_server_one_of_them_killed(
    cluster: Nodes,
    stored: str,
    seaweedfs: SeaweedFS,
    bucket: Bucket,
    quiet: Weights,
    tmp_path: Path,
    note: Note,
) -> None:
    arguments = command(stored, f"{bucket.uri}/target", tmp_path / "c.yaml", cluster, 1)
    with_credentials(tmp_path / "c.yaml", seaweedfs)
    victim, other = start(*arguments), start(*arguments)
    wait_for(lambda: away_commits(bucket) >= 5, victim)
    note(f"killed after {away_commits(bucket)} commits")
    victim.kill()
    end(victim)
    done = end(other)
    assert done.returncode == 0, done.stderr
    assert_whole_in(
        bucket.objects, f"{bucket.uri}/target", bucket.storage_options, quiet, tmp_path / "downloaded"
    )
