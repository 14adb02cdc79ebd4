from __future__ import annotations

import pytest

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.engine import EngineEvent
from arrowquant_dist.engine.ray.ledger import Ledger
from arrowquant_dist.engine.ray.pace import Patience
from arrowquant_dist.engine.run import raise_failures
from arrowquant_dist.errors import PartialRun, StorageError
from arrowquant_dist.plan import Shard, make_plan
from tests.plan.plan_sources import checkpoint

AWAY = StorageError("away")


@pytest.fixture
def shards() -> tuple[Shard, ...]:
    """Of 1, 2 and 3 row blocks."""
    layers = {f"layers.{i}": (64 * (i + 1), 256) for i in range(3)}
    run = RunConfig(block_bytes=64 << 10, shard_bytes=64 << 10)
    blocks = [b for s in make_plan(checkpoint(layers), QuantizationConfig(), run).shards for b in s.blocks]
    by_layer = [[b for b in blocks if b.layer.name == name] for name in layers]
    return tuple(Shard(i, tuple(of)) for i, of in enumerate(by_layer))


@pytest.fixture
def events() -> list[EngineEvent]:
    return []


@pytest.fixture
def ledger(shards: tuple[Shard, ...], events: list[EngineEvent]) -> Ledger:
    return Ledger(shards, events.append, Patience(attempts=3, backoff=1.0))


def test_the_largest_goes_first(ledger: Ledger) -> None:
    taken = [ledger.take("a", ["a"], 0.0) for _ in range(4)]
    assert [shard.index if shard else None for shard in taken] == [2, 1, 0, None]


def test_a_shard_that_failed_goes_to_another_worker_after_a_pause(ledger: Ledger) -> None:
    shard = ledger.take("a", ["a", "b"], 0.0)
    assert shard is not None
    assert ledger.retry(shard, "a", AWAY, now=10.0)
    ledger.put_back(shard, is_again=True)
    assert ledger.take("b", ["a", "b"], 10.5) is not shard
    assert ledger.take("a", ["a", "b"], 11.5) is not shard
    assert ledger.take("b", ["a", "b"], 11.5) is shard
    ledger.began(shard, is_second=False)
    assert ledger.facts(0.0).shard_retries == 1


def test_the_only_worker_may_try_again(ledger: Ledger, shards: tuple[Shard, ...]) -> None:
    shard = ledger.take("a", ["a"], 0.0)
    assert shard is shards[2]
    ledger.retry(shard, "a", AWAY, now=0.0)
    ledger.put_back(shard, is_again=True)
    assert ledger.take("a", ["a"], 5.0) is shard


def test_after_the_last_attempt_the_shard_fails_with_its_cause(
    ledger: Ledger, shards: tuple[Shard, ...]
) -> None:
    assert [ledger.retry(shards[0], "a", AWAY, 0.0) for _ in range(3)] == [True, True, False]
    assert [ledger.retry(shards[1], "a", "died", 0.0) for _ in range(3)] == [True, True, False]
    assert ledger.failures[0] is AWAY
    assert isinstance(ledger.failures[1], PartialRun)
    with pytest.raises(PartialRun, match=r"in each of 3 attempts .last: died.*'layers.1'"):
        raise_failures({1: ledger.failures[1]}, shards)
    assert list(ledger.open) == [2]


def test_each_row_block_is_told_once_whoever_did_it(
    ledger: Ledger, shards: tuple[Shard, ...], events: list[EngineEvent]
) -> None:
    shard = shards[2]
    ledger.advance(shard, 2, alive=1)  # one attempt
    ledger.advance(shard, 1, alive=1)  # another, further behind
    ledger.finish(shard, "node", alive=1, notice=None)
    ledger.finish(shard, "node", alive=1, notice=None)
    assert [event.rows for event in events] == [2, 1]
    assert sum(event.layers for event in events) == 1
    assert sum(event.nbytes for event in events) == shard.source_nbytes
    assert ledger.facts(0.0).nodes == ("node",)
