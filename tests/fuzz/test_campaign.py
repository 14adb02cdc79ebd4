"""A share of `python -m tests.fuzz`, and all of it as a slow test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import COUNTS, summary
from tests.fuzz.campaign import run_cases

_FEW = {"safetensors": 40, "datasets": 20, "pickles": 5}
_ANOTHER_SEED = 1_000_000  # not those of the command


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_a_few_odd_and_hostile_inputs_are_right_or_refused(tmp_path: Path, kind: str) -> None:
    _check(tmp_path, kind, _FEW[kind], processes=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", COUNTS)
def test_thousands_of_odd_and_hostile_inputs_are_right_or_refused(tmp_path: Path, kind: str) -> None:
    _check(tmp_path, kind, COUNTS[kind], processes=2)


def _check(folder: Path, kind: str, count: int, processes: int) -> None:
    cases = [(kind, seed) for seed in range(_ANOTHER_SEED, _ANOTHER_SEED + count)]
    results = list(run_cases(cases, folder, processes))
    assert len(results) == count
    failed = [result for result in results if result.is_failure]
    assert not failed, f"{summary(results)}\nseed {failed[0].seed}: {failed[0].ended}"
    assert {result.ended.split()[0] for result in results} == {"accepted", "refused"} or kind == "pickles"


def test_a_process_that_ends_fails_its_case_alone_and_the_next_one_gets_another(tmp_path: Path) -> None:
    cases = [("crash", 7), ("pickles", 8), ("unknown", 9)]
    crashed, fine, unknown = run_cases(cases, tmp_path, processes=1)
    assert crashed.is_failure
    assert "ended with -11" in crashed.ended
    assert "Segmentation fault" in crashed.ended
    assert not fine.is_failure
    assert "KeyError" in unknown.ended
