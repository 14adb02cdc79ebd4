"""Figures of next-token distributions, compared with numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.evaluation import next_tokens
from arrowquant_dist.evaluation.next_tokens import NextTokens


def logits(positions: int, seed: int, vocabulary: int = 17) -> torch.Tensor:
    return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def probabilities(values: torch.Tensor) -> np.ndarray:
    wide: np.ndarray = np.exp(values.numpy().astype(np.float64))
    found: np.ndarray = wide / wide.sum(axis=1, keepdims=True)
    return found


def test_every_figure_is_what_its_formula_says() -> None:
    lengths, collected = (5, 1, 9), NextTokens(3)
    p, q, following = [], [], []
    for text, length in enumerate(lengths):
        one, other = logits(length, text), logits(length, text) + 0.5 * logits(length, 90 + text)
        chosen = torch.arange(length) * 5 % 17
        collected.add(text, one, other, chosen)
        p.append(probabilities(one))
        q.append(probabilities(other))
        following += chosen.tolist()
    first, second, places = np.concatenate(p), np.concatenate(q), np.arange(15)
    found = collected.figures()
    assert found.positions == 15
    original = np.exp(-np.log(first[places, following]).mean())
    quantized = np.exp(-np.log(second[places, following]).mean())
    assert found.perplexity_original == pytest.approx(original, rel=1e-12)
    assert found.perplexity == pytest.approx(quantized, rel=1e-12)
    assert found.excess == pytest.approx(quantized / original - 1, rel=1e-9)
    assert found.kl_mean == pytest.approx((first * np.log(first / second)).sum(axis=1).mean(), rel=1e-9)
    assert found.top1_agreement == (first.argmax(1) == second.argmax(1)).mean()
    assert 0 < found.top1_agreement < 1


def test_equal_distributions_have_no_excess_and_no_divergence() -> None:
    collected = NextTokens(1)
    collected.add(0, logits(8, 1), logits(8, 1), torch.arange(8))
    found = collected.figures()
    assert (found.excess, found.kl_mean, found.top1_agreement) == (0.0, 0.0, 1.0)


def test_neither_the_order_of_texts_nor_chunks_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = NextTokens(6), NextTokens(6)
    for text in range(6):
        one.add(text, logits(7, text), logits(7, text + 50), torch.arange(7))
    monkeypatch.setattr(next_tokens, "_CHUNK_VALUES", 34)
    for text in reversed(range(6)):
        other.add(text, logits(7, text), logits(7, text + 50), torch.arange(7))
    assert one.figures() == other.figures()


def test_small_divergences_are_not_rounded_away() -> None:
    """In float32 the terms of such a sum are 1e-7 apart."""
    collected = NextTokens(1)
    values = logits(4, 3, 5000)
    moved = values.clone()
    moved[:, 0] += 1e-3
    collected.add(0, values, moved, torch.zeros(4, dtype=torch.int64))
    p, q = probabilities(values), probabilities(moved)
    assert collected.figures().kl_mean == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-5)


def test_tokens_that_both_rule_out_count_nothing_and_one_alone_is_no_figure() -> None:
    one, other = logits(4, 1), logits(4, 2)
    expected, collected = NextTokens(1), NextTokens(1)
    expected.add(0, one[:, :9], other[:, :9], torch.arange(4))
    one[:, 9:] = other[:, 9:] = -math.inf
    collected.add(0, one, other, torch.arange(4))
    assert collected.figures() == expected.figures()
    with pytest.raises(UnquantizableWeights, match="not finite"):
        NextTokens(1).add(0, logits(4, 1), other, torch.arange(4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_named(value: float) -> None:
    wrong = logits(4, 1)
    wrong[2, 3] = value
    with pytest.raises(
        UnquantizableWeights,
        match="text number 8 gets next-token probabilities of the dataset that are not finite; look for layers",
    ):
        NextTokens(9).add(7, logits(4, 1), wrong, torch.arange(4))
