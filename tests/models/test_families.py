"""Every transformers family that can be built small is loaded as from_pretrained loads it from decoded weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from arrowquant_dist import load_model
from tests.models.families import families
from tests.models.served import coded_modules
from tests.models.sweep import (
    NO_CLASS,
    NOT_BUILT,
    OTHER,
    OWN_TRIP,
    REFUSED,
    SAME,
    Outcome,
    coded_outcome_of,
    outcome_of,
)

# Of each way in which a checkpoint's names and shapes are not the model's: merged and interleaved experts, renamed and
# split projections, moved prefixes, transposed matrices, ties, buffers, weights made of two, changes after loading.
OF_EACH_KIND = (
    *("llama", "bert", "t5", "vit", "gpt_neox", "gpt2", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"),
    *("nomic_bert", "whisper", "mamba", "chinese_clip", "hubert", "rwkv"),
)
# How many modules of each have codes, by every name that they have.
_CODED = {"mixtral": 9, "t5": 35, "vit": 13}
# Families that were built and right with transformers 5.24: fewer are a loss, of the sweep's or of ours.
_LEAST_SAME, _LEAST_WITH_CODES = 578, 552
_BATCHES = 8


@pytest.mark.parametrize("family", OF_EACH_KIND)
def test_a_family_of_each_kind_comes_back(family: str) -> None:
    assert outcome_of(family) == Outcome(family, SAME)


def test_a_model_that_is_not_right_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep itself: one value that is another one, and it says so."""

    def nearly(*args: Any) -> Any:
        model = load_model(*args)
        next(iter(model.parameters())).data.view(-1)[0] += 1
        return model

    monkeypatch.setattr("tests.models.sweep.load_model", nearly)
    assert outcome_of("llama").kind == OTHER


@pytest.mark.parametrize("family", ["mixtral", "t5", "vit"])
def test_codes_of_a_family_decode_to_its_decoded_model(family: str) -> None:
    outcome = coded_outcome_of(family)
    assert (outcome.kind, outcome.why) == (SAME, f"{_CODED[family]} modules of codes")


def test_codes_that_are_not_right_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly(*args: Any, **options: Any) -> Any:
        model = load_model(*args, **options)
        if options.get("codes"):
            module = next(iter(coded_modules(model).values()))
            module.weight.scales[0, 0] *= 2
        return model

    monkeypatch.setattr("tests.models.sweep.load_model", nearly)
    assert coded_outcome_of("llama").kind == OTHER


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_family_that_can_be_built_small_comes_back() -> None:
    check(outcomes_of_all())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_codes_of_every_family_decode_to_its_decoded_model() -> None:
    outcomes = outcomes_of_all("--codes")
    check(outcomes)
    with_codes = [one for one in outcomes if one.kind == SAME and not one.why.startswith("0 ")]
    assert len(with_codes) >= _LEAST_WITH_CODES, _named(one for one in outcomes if one not in with_codes)


def outcomes_of_all(*options: str) -> list[Outcome]:
    """In processes of their own, a batch of families each, so that what one leaves in memory is not the next one's."""
    names = families()

    def run(batch: int) -> str:
        command = [
            *(sys.executable, "-W", "ignore", "-m", "tests.models.sweep"),
            *options,
            *names[batch::_BATCHES],
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with ThreadPoolExecutor(2) as pool:
        lines = "".join(pool.map(run, range(_BATCHES))).splitlines()
    outcomes = [Outcome(*json.loads(line)) for line in lines]
    assert sorted(outcome.family for outcome in outcomes) == names
    return outcomes


def check(outcomes: list[Outcome]) -> None:
    """None is wrong, and no fewer are compared than ever before. What is left is transformers' own: no Auto class, a
    config without defaults that fit, a package that is not here, or weights that its own from_pretrained does
    not give back. Each says why."""
    assert [outcome for outcome in outcomes if outcome.kind in {OTHER, REFUSED}] == []
    others = [outcome for outcome in outcomes if outcome.kind not in {SAME, NO_CLASS}]
    assert {outcome.kind for outcome in others} <= {NOT_BUILT, OWN_TRIP}, _named(others)
    assert all(outcome.why for outcome in others), _named(others)
    same = sum(outcome.kind == SAME for outcome in outcomes)
    assert same >= _LEAST_SAME, f"{same} families were built and are right; not: {_named(others)}"


def _named(outcomes: Iterable[Outcome]) -> str:
    return "; ".join(f"{one.family} ({one.kind}: {one.why})" for one in outcomes)
