"""Every family of transformers that can be built small comes back, as from_pretrained makes it of decoded weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from arrowquant_dist import load_model
from tests.models.families import classes_of, families
from tests.models.sweep import NO_CLASS, NOT_BUILT, OTHER, OWN_TRIP, REFUSED, SAME, Outcome, outcome_of

# Of each way in which a checkpoint's names and shapes are not the model's: merged and interleaved experts, renamed and
# split projections, moved prefixes, transposed matrices, ties, buffers, weights made of two, changes after loading.
OF_EACH_KIND = (
    *("llama", "bert", "t5", "vit", "gpt_neox", "gpt2", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"),
    *("nomic_bert", "whisper", "mamba", "chinese_clip", "hubert", "rwkv"),
)
# Families that have to be compared, of those that this version of transformers has: 578 of 5.24.
_LEAST = 0.65
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


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_family_that_can_be_built_small_comes_back() -> None:
    """In processes of their own, a batch of families each, so that what one leaves in memory is not the next one's."""
    names = families()

    def run(batch: int) -> str:
        command = [sys.executable, "-W", "ignore", "-m", "tests.models.sweep", *names[batch::_BATCHES]]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with ThreadPoolExecutor(2) as pool:
        lines = "".join(pool.map(run, range(_BATCHES))).splitlines()
    outcomes = [Outcome(*json.loads(line)) for line in lines]
    assert sorted(outcome.family for outcome in outcomes) == names
    assert [outcome for outcome in outcomes if outcome.kind in {OTHER, REFUSED}] == []
    # What is left is transformers' own: no Auto class, a config without defaults that fit, a package that is not here,
    # or weights that its own from_pretrained does not give back. Each says why.
    others = [outcome for outcome in outcomes if outcome.kind != SAME]
    assert all(outcome.why or outcome.kind == NO_CLASS for outcome in others)
    assert {outcome.kind for outcome in others} <= {NO_CLASS, NOT_BUILT, OWN_TRIP}
    counts = Counter(outcome.kind for outcome in outcomes)
    assert counts[SAME] >= _LEAST * sum(bool(classes_of(name)) for name in names), counts
