"""Figures that compare two sets of embeddings of the same texts: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.report.evaluation import EmbeddingFigures

Whose = Literal["the original", "the dataset"]
WHAT_TO_DO: Mapping[Whose, str] = {  # where outputs are not finite
    "the original": "look for NaN or inf in its weights",
    "the dataset": "look for layers with NaN or inf in its report, or quantize them with more bits",
}
NEIGHBOURS = 10
MOST_PAIRED = 3000  # texts: 4.5 million pairs, 200 MB to rank them
_COSINES = 4 << 20  # number of cosines at a time, 32 MiB


def embedding_figures(original: np.ndarray, quantized: np.ndarray) -> EmbeddingFigures:
    """Compares embeddings. original, quantized: [texts, dimensions], one row for each text.

    EmbeddingFigures explains the figures. Of more than MOST_PAIRED texts, as many, evenly spread, make the pairs of the
    correlation, and their neighbours are looked for among all texts. Raises UnquantizableWeights for embeddings that
    are not finite, or all zeros, which have no direction.
    """
    one, other = _directions(original, "the original"), _directions(quantized, "the dataset")
    cosines = np.einsum("ij,ij->i", one, other).clip(-1, 1)
    same = (original == quantized).all(axis=1)
    cosines[same] = 1.0
    spread = _spread(len(one))
    pairs = len(spread) * (len(spread) - 1) // 2
    return EmbeddingFigures(
        dimensions=int(original.shape[1]),
        cosine_mean=float(cosines.mean()),
        cosine_p5=float(np.percentile(cosines, 5)),
        cosine_min=float(cosines.min()),
        rank_correlation=spearman(_similarities(one[spread]), _similarities(other[spread]))
        if pairs > 1
        else None,
        pairs=pairs,
        recall_at_10=_recall(one, other, spread) if len(one) > NEIGHBOURS else None,
    )


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's correlation of the ranks of two vectors of equal length; equal values have the mean of their ranks.
    None where all values of one are equal."""
    first, second = _ranks(one), _ranks(other)
    if np.array_equal(first, second) and first.min() < first.max():
        return 1.0
    first -= first.mean()
    second -= second.mean()
    size = np.sqrt(np.dot(first, first) * np.dot(second, second))
    return float(np.clip(np.dot(first, second) / size, -1, 1)) if size else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _directions(values: np.ndarray, whose: Whose) -> np.ndarray:
    """The rows scaled to length 1, float64."""
    wide = values.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if bad.size:
        what = "not finite" if not np.isfinite(lengths[bad[0]]) else "all zeros"
        message = (
            f"{whose} makes embeddings that are {what} for {bad.size} of {len(values)} texts, the first is number "
            f"{bad[0] + 1}; {WHAT_TO_DO[whose]}"
        )
        raise UnquantizableWeights(message)
    directions: np.ndarray = wide / lengths[:, None]
    return directions


def _spread(texts: int) -> np.ndarray:
    """Indices of the texts whose pairs are compared."""
    if texts <= MOST_PAIRED:
        return np.arange(texts)
    return np.arange(MOST_PAIRED) * texts // MOST_PAIRED


def _similarities(directions: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of rows, each pair once."""
    every = directions @ directions.T
    found: np.ndarray = every[np.triu_indices(len(every), 1)]
    return found


def _recall(one: np.ndarray, other: np.ndarray, texts: np.ndarray) -> float:
    """Mean part of the nearest neighbours that both have. texts: indices of the texts whose neighbours count."""
    step = max(1, _COSINES // len(one))
    found = 0
    for start in range(0, len(texts), step):
        rows = texts[start : start + step]
        for near, also in zip(_nearest(one, rows), _nearest(other, rows), strict=True):
            found += len(np.intersect1d(near, also, assume_unique=True))
    return found / (NEIGHBOURS * len(texts))


def _nearest(directions: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of the nearest other rows of each of `rows`; of equally near ones the first."""
    cosines = directions[rows] @ directions.T
    cosines[np.arange(len(rows)), rows] = -np.inf
    for row in cosines:
        least = np.partition(row, -NEIGHBOURS)[-NEIGHBOURS]
        near = np.flatnonzero(row >= least)
        yield near[np.argsort(-row[near], kind="stable")[:NEIGHBOURS]]
