"""Figures of embeddings, compared with scipy and with formulas written out in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.evaluation import embeddings
from arrowquant_dist.evaluation.embeddings import embedding_figures, spearman


def pair(texts: int, noise: float = 0.5, dimensions: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(texts)
    original = random.standard_normal((texts, dimensions)).astype(np.float32)
    return original, original * 3 + noise * random.standard_normal(original.shape).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_every_figure_is_what_its_formula_says() -> None:
    one, other = pair(40, noise=3.0)
    found = embedding_figures(one, other)
    own = [cosine(a, b) for a, b in zip(one, other, strict=True)]
    assert found.cosine_mean == pytest.approx(sum(own) / 40, abs=1e-12)
    assert found.cosine_p5 == pytest.approx(np.percentile(own, 5), abs=1e-12)
    assert found.cosine_min == pytest.approx(min(own), abs=1e-12)
    pairs = [*itertools.combinations(range(40), 2)]
    similarities = [[cosine(e[i], e[j]) for i, j in pairs] for e in (one, other)]
    assert found.rank_correlation == pytest.approx(spearmanr(*similarities).statistic, abs=1e-9)
    assert found.pairs == len(pairs)
    hits = 0
    for i in range(40):
        near = [
            sorted((j for j in range(40) if j != i), key=lambda j: -cosine(e[i], e[j]))[:10]
            for e in (one, other)
        ]
        hits += len({*near[0]} & {*near[1]})
    assert found.recall_at_10 == hits / 400
    assert 0.3 < found.recall_at_10 < 0.9
    assert found.dimensions == 12


def test_equal_embeddings_have_every_figure_one() -> None:
    one, _ = pair(30)
    found = embedding_figures(one, one.copy())
    assert (found.cosine_mean, found.cosine_p5, found.cosine_min) == (1.0, 1.0, 1.0)
    assert (found.rank_correlation, found.recall_at_10) == (1.0, 1.0)


def test_lengths_do_not_count_and_opposites_do() -> None:
    one, _ = pair(30)
    assert embedding_figures(one, one * 4).cosine_min == pytest.approx(1.0, abs=1e-12)
    assert embedding_figures(one, -one).cosine_mean == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize("texts", [1, 2, 3, 10, 11])
def test_what_too_few_texts_do_not_tell_is_none(texts: int) -> None:
    found = embedding_figures(*pair(texts))
    assert (found.rank_correlation is None) == (texts < 3)
    assert (found.recall_at_10 is None) == (texts < 11)
    assert 0.9 < found.cosine_mean <= 1.0


def test_ranks_of_ties_are_averaged() -> None:
    random = np.random.default_rng(5)
    one, other = random.integers(0, 4, 50).astype(float), random.integers(0, 6, 50).astype(float)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert spearman(one, np.ones(50)) is None


def test_of_equally_near_texts_the_first_counts() -> None:
    one = np.repeat(np.eye(2, dtype=np.float32), 12, axis=0)
    assert embedding_figures(one, one).recall_at_10 == 1.0


def test_of_very_many_texts_some_evenly_spread_make_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair(90)
    monkeypatch.setattr(embeddings, "MOST_PAIRED", 30)
    found = embedding_figures(one, other)
    assert found.pairs == 30 * 29 // 2
    assert found.rank_correlation == embedding_figures(one[::3], other[::3]).rank_correlation
    monkeypatch.undo()
    every = embedding_figures(one, other).recall_at_10
    assert found.recall_at_10 == pytest.approx(every, abs=0.1)
    assert found.recall_at_10 != every
    monkeypatch.setattr(embeddings, "MOST_PAIRED", 30)
    assert found.cosine_min == min(
        embedding_figures(one[part], other[part]).cosine_min for part in (slice(45), slice(45, 90))
    )


def test_neighbours_of_many_texts_are_found_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair(60, noise=2)
    whole = embedding_figures(one, other).recall_at_10
    monkeypatch.setattr(embeddings, "_COSINES", 7 * 60)
    assert embedding_figures(one, other).recall_at_10 == whole


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "not finite"), (np.inf, "not finite"), (0, "all zeros")]
)
def test_embeddings_without_a_direction_are_named(value: float, said: str) -> None:
    one, other = pair(20)
    other[7] = value
    with pytest.raises(
        UnquantizableWeights,
        match=f"the dataset makes embeddings that are {said} for 1 of 20 texts, .* number 8",
    ):
        embedding_figures(one, other)
    with pytest.raises(UnquantizableWeights, match="the original makes"):
        embedding_figures(other, one)
