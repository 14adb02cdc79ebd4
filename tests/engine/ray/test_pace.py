from __future__ import annotations

from dataclasses import replace

import pytest

from arrowquant_dist.engine.ray.pace import DEADLINE, Pace, Patience, is_slow

MIB = 1 << 20


def _pace(*seconds: float) -> Pace:
    """Of shards of 99 MiB, and what each costs besides."""
    pace = Pace()
    for each in seconds:
        pace.add(99 * MIB, each)
    return pace


def test_nothing_is_expected_before_the_first_shard() -> None:
    assert Pace().expected(MIB) is None
    assert not is_slow(1e6, 1e6, None, Patience())


def test_the_median_shard_is_expected_whatever_one_took() -> None:
    assert _pace(10, 10, 5000).expected(99 * MIB) == pytest.approx(10)
    assert _pace(10).expected(199 * MIB) == pytest.approx(20)


def test_a_shard_without_bytes_takes_time_too() -> None:
    assert 0 < (_pace(10).expected(0) or 0) < 1


def test_no_deadline_is_below_the_least_and_large_shards_get_more() -> None:
    assert _pace(1).deadline(99 * MIB) == DEADLINE
    assert _pace(100).deadline(99 * MIB) == pytest.approx(1000)
    assert Pace().deadline(4 << 30) > 10 * 1000  # nothing seen yet: 4 MiB a second are taken for granted


@pytest.mark.parametrize(
    ("elapsed", "still", "slow"),
    [(22, 1, False), (24, 1, True), (15, 9, False), (15, 11, True)],
)
def test_late_or_without_a_block_for_long_is_slow(elapsed: float, still: float, *, slow: bool) -> None:
    assert is_slow(elapsed, still, 10.0, Patience(stall=10.0, late=3.0)) is slow


def test_a_node_that_is_alone_is_not_waited_for_as_a_cluster_s_next_one() -> None:
    assert Patience().on_one_node.placement == 10.0
    assert Patience(placement=5.0).on_one_node.placement == 5.0
    assert replace(Patience(poll=0.2).on_one_node, placement=900.0) == Patience(poll=0.2)
