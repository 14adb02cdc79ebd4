"""Data classes for an evaluation: how far a dataset's outputs are from the original model's, on one set of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.field_types import check_types


@dataclass(frozen=True, slots=True)
class EmbeddingFigures:
    """Figures that compare the embeddings of the texts by the original, e, with those by the dataset, ê, in float64.

    dimensions: length of an embedding. cosine_mean, cosine_p5, cosine_min: mean, 5th percentile (linearly
    interpolated) and minimum over the texts of the cosine e·ê / (|e| |ê|). rank_correlation: Spearman's correlation of
    the cosines of all pairs of texts by e with those by ê, where ties have the mean of their ranks; None for fewer than
    three texts, or if all cosines by e or all by ê are equal. pairs: number of pairs in the correlation. recall_at_10:
    share of a text's ten nearest other texts by e that are among its ten nearest by ê, averaged over the texts; nearest
    by cosine, and of equally near texts the first; None for ten texts or fewer.

    If there are more than 3,000 texts, the pairs are those of 3,000 evenly spread ones. The recall is then averaged
    over these texts alone, but their neighbours are looked for among all.
    """

    dimensions: int
    cosine_mean: float
    cosine_p5: float
    cosine_min: float
    rank_correlation: float | None
    pairs: int
    recall_at_10: float | None


@dataclass(frozen=True, slots=True)
class NextTokenFigures:
    """Figures that compare the next-token distributions of the original, p, with those of the dataset, q, over all
    positions that have a next token in their text. Every position has the same weight, whatever the length of its text.
    In float64 and nats.

    positions: number of positions. perplexity_original, perplexity: exp of the mean of −ln p(next token), and of
    −ln q(next token). excess: perplexity / perplexity_original − 1. kl_mean: mean over the positions of Σ p ln(p/q)
    over the vocabulary. top1_agreement: share of positions at which both have the same most likely token; of equally
    likely tokens the first counts.
    """

    positions: int
    perplexity_original: float
    perplexity: float
    excess: float
    kl_mean: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class TextFacts:
    """The texts of an evaluation. name: name of the texts. digest: digest of the texts (texts/read.py::Texts.digest).
    texts: number of texts. skipped: number of empty lines. tokens: number of tokens in all texts, as the model saw
    them; None if its tokenizer does not tell. longest: largest number of tokens of a text; None if there is no limit.
    cut: number of texts that were longer and were cut."""

    name: str
    digest: str
    texts: int
    skipped: int
    tokens: int | None
    longest: int | None
    cut: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of a dataset. Exactly one of `embeddings` and `next_tokens` is not None.

    kind: `sentence-transformers`, `encoder` or `causal`. architecture: class of the model, as its config names it.
    model: where the original is, safe to show. dataset: identity of the dataset at the target, by its manifest: the
    run's id, or the fingerprint for datasets of the first releases. texts: the texts that both models were given.
    embeddings, next_tokens: the figures. arithmetic: dtype in which both models computed. pooling: how the embeddings
    of tokens became one of the text; None if nothing was pooled. created_at: time of the evaluation, in UTC. seconds:
    how long it took. versions: versions of the libraries that computed it. notes: what to know before relying on the
    figures.
    """

    kind: str
    architecture: str
    model: str
    dataset: str
    texts: TextFacts
    embeddings: EmbeddingFigures | None
    next_tokens: NextTokenFigures | None
    arithmetic: str
    pooling: str | None
    created_at: str
    seconds: float
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> EmbeddingFigures | NextTokenFigures | None:
        """The figures, `embeddings` or `next_tokens`."""
        return self.embeddings or self.next_tokens

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain values that JSON can hold."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises InvalidCheckpoint, which names the field, for values of another form."""
        try:
            known = {field.name: values[field.name] for field in fields(cls)}
            known["texts"] = _made(TextFacts, values["texts"])
            for name, kind in (("embeddings", EmbeddingFigures), ("next_tokens", NextTokenFigures)):
                known[name] = None if values[name] is None else _made(kind, values[name])
            found = cls(**{**known, "notes": tuple(values["notes"])})
            check_types(found, "")
        except (KeyError, TypeError) as error:
            message = f"an evaluation is damaged ({error}); remove the file, and evaluate again"
            raise InvalidCheckpoint(message) from error
        if (found.embeddings is None) == (found.next_tokens is None):
            message = (
                "an evaluation has both kinds of figures, or neither; remove the file, and evaluate again"
            )
            raise InvalidCheckpoint(message)
        return found


def _made(kind: Any, values: Any) -> Any:
    return kind(**{field.name: values[field.name] for field in fields(kind)})
