"""The frontier of sizes on the real model: more bytes are never worse."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, evaluate
from arrowquant_dist.texts import read_texts
from tests.sizing.test_run import parts_nbytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MEGABYTES = (5.2, 5.5, 6.0, 6.8, 7.3, 8.5, 9.5, 11.1, 14.0, 18.0, 25.2, 30.0)
FLOORS = {5.5: 0.72, 6.8: 0.84, 7.3: 0.88, 8.5: 0.94, 11.1: 0.96, 25.2: 0.9995}


def test_twelve_sizes_of_minilm_are_met_and_each_is_better_than_the_one_before(tmp_path: Path) -> None:
    """Without data, by half of the texts that are held back."""
    texts, found = read_texts("builtin:held-back").items[::2], []
    for megabytes in MEGABYTES:
        size, target = round(megabytes * 1e6), tmp_path / "target"
        ArrowQuantizer(QuantizationConfig(size=size)).quantize("minilm", str(target))
        assert 0.99 * size <= parts_nbytes(target) <= size
        figures = evaluate("minilm", target, [*texts]).embeddings
        assert figures is not None
        found.append(figures.cosine_mean)
        shutil.rmtree(target)
    assert all(less < more for less, more in pairwise(found))
    assert {m: c for m, c in zip(MEGABYTES, found, strict=True) if c < FLOORS.get(m, 0.0)} == {}
