"""`counted`: rows of an embedding get steps by how often a calibration's texts read them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.methods.counted import CountedRows
from arrowquant_dist.methods.size import relative_steps
from arrowquant_dist.tensor import quantize_layer
from tests.methods.row_blocks import check_row_blocks

_SPEC = QuantSpec("int8", group_size=0, method="counted", step=0.5, row_exponent=0.15, rate=0.1155)
_ROWS, _COLUMNS = 3000, 32


def values() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((_ROWS, _COLUMNS)).astype(np.float32)


def counts() -> np.ndarray:
    """As texts have them by a vocabulary that begins with a thousand unused ids, but for two that are in all texts."""
    found = np.random.default_rng(4).poisson(4000.0 / np.arange(1.0, _ROWS + 1)).astype(np.float32)
    found = np.roll(found, 1000)
    found[:1000] = 0
    found[[7, 500]] = 900
    return found


def test_rows_that_are_read_more_often_have_finer_steps_wherever_they_are() -> None:
    steps = CountedRows.of(counts()).steps(_SPEC, 0, _ROWS)
    unused, common, rare = np.r_[100:400], np.r_[1000:1010], np.r_[2500:3000]
    assert steps[common].max() < steps[rare].min() < steps[unused].min()
    assert steps[[7, 500]].max() < steps[rare].min()


def test_one_text_more_or_less_moves_no_row_far() -> None:
    """A row whose neighbours are read as seldom as it is known by these, not by the chance that it was read at all."""
    found = counts()
    found[2500] = 0
    before = CountedRows.of(found).steps(_SPEC, 0, _ROWS)
    found[2500] = 1
    after = CountedRows.of(found).steps(_SPEC, 0, _ROWS)
    assert before[2500] > after[2500] > 0.7 * before[2500]
    assert np.abs(np.delete(after / before, 2500) - 1).max() < 0.01


@pytest.mark.parametrize("found", [counts(), np.ones(_ROWS, np.float32), np.zeros(_ROWS, np.float32)])
def test_the_mean_step_is_that_of_rows_by_their_ids(found: np.ndarray) -> None:
    steps = CountedRows.of(found).steps(_SPEC, 0, _ROWS)
    by_id = relative_steps(replace(_SPEC, method="size"), 0, _ROWS)
    assert np.log(steps).mean() == pytest.approx(np.log(by_id).mean(), abs=0.03)


def test_without_a_token_rows_are_ranked_by_their_ids() -> None:
    steps = CountedRows.of(np.zeros(_ROWS, np.float32)).steps(_SPEC, 0, _ROWS)
    assert np.array_equal(steps, relative_steps(replace(_SPEC, method="size"), 0, _ROWS))


@pytest.mark.parametrize("cut", [1, 1000, 2999])
def test_a_row_is_the_same_in_any_row_block(cut: int) -> None:
    whole = quantize_layer(
        values().reshape(-1).view(np.uint8), (_ROWS, _COLUMNS), "float32", _SPEC, {"counts": counts()}
    )
    check_row_blocks(whole, values(), _SPEC, CountedRows.of(counts()), cut)


def test_counts_of_another_layer_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"counts is .*2999.*; pass float32 of \[3000\]"):
        quantize_layer(
            values().reshape(-1).view(np.uint8), (_ROWS, _COLUMNS), "float32", _SPEC, {"counts": counts()[1:]}
        )
