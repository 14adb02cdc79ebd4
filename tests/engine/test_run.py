from __future__ import annotations

import pytest

from arrowquant_dist.engine.run import raise_failures
from arrowquant_dist.errors import Interrupted, PartialRun, StorageError, UnquantizableWeights

NAN = UnquantizableWeights("NaN at index [1]", layer="a")
INF = UnquantizableWeights("inf at index [2]", layer="b")
FULL = StorageError("the disk is full")
BUG = ZeroDivisionError("division by zero")


def test_no_failure_raises_nothing() -> None:
    raise_failures({}, 3)


@pytest.mark.parametrize("error", [NAN, FULL, BUG])
def test_one_failure_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        raise_failures({4: error}, 9)
    assert raised.value is error


def test_several_bad_layers_are_one_bad_input_that_names_them_all() -> None:
    with pytest.raises(UnquantizableWeights, match=r"2 of 9 shards failed: .*'a'.*'b'") as raised:
        raise_failures({1: NAN, 2: INF}, 9)
    assert raised.value.exit_code == 2


def test_bad_input_beside_a_full_disk_is_a_partial_run_that_names_both() -> None:
    with pytest.raises(PartialRun, match=r"NaN.*disk is full.*the same command resumes") as raised:
        raise_failures({1: NAN, 2: FULL}, 9)
    assert raised.value.exit_code == 1


def test_a_bug_is_never_hidden_behind_errors_that_were_meant() -> None:
    with pytest.raises(ZeroDivisionError):
        raise_failures({1: NAN, 2: BUG}, 9)


def test_what_stopped_the_others_is_named_rather_than_that_they_stopped() -> None:
    with pytest.raises(PartialRun, match="disk is full"):
        raise_failures({1: Interrupted("stopped"), 2: FULL}, 9)
