"""How far a dataset's outputs are from the original model's, as data: what was measured with one set of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.field_types import check_types


@dataclass(frozen=True, slots=True)
class EmbeddingFigures:
    """Of the texts' embeddings, e by the original and ê by the dataset, in float64.

    cosine: e·ê / (|e| |ê|) of each text; cosine_p5: their 5th percentile, linearly interpolated. rank_correlation:
    Spearman's, of the cosines of all pairs of texts among e with those among ê, ranks of ties averaged; None for fewer
    than three texts, or where all are alike. recall_at_10: of each text's ten nearest by e (by cosine, itself apart, of
    equal ones the first), the share that is among its ten nearest by ê, averaged over texts; None for ten texts and
    fewer. pairs: that the correlation is over; of
    more than 3,000 texts those of as many, evenly spread, whose neighbours alone are looked for too.
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
    """Of next-token distributions, p by the original and q by the dataset, over all positions that have a next token in
    their text; every position counts once, whatever its text's length. In float64, in nats.

    perplexity: exp of the mean of −ln p(next token). excess: perplexity of q over that of p, less 1. kl_mean: of
    Σ p ln(p/q) over the vocabulary. top1_agreement: share of positions where both find the same token likeliest, of
    equally likely ones the first.
    """

    positions: int
    perplexity_original: float
    perplexity: float
    excess: float
    kl_mean: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What was evaluated with. digest: of the texts (texts/read.py::Texts.digest). skipped: lines that were empty.
    tokens: of all texts as the model saw them; None where its tokenizer does not tell. cut: how many texts were longer
    than longest tokens, and lost the rest."""

    name: str
    digest: str
    texts: int
    skipped: int
    tokens: int | None
    longest: int | None
    cut: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of a dataset. Either `embeddings` or `next_tokens` is there.

    kind: `sentence-transformers`, `encoder` or `causal`. architecture: the model's class, as its config names it.
    model: the original's place, safe to show. dataset: which one was at the target, as the manifest says (run, or the
    fingerprint of older ones). texts: what was evaluated with. arithmetic: what both were computed in. pooling: how
    tokens became an embedding. created_at: UTC. seconds: that it took. versions: of what computed it. notes: what to
    know before its figures are believed.
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
        """Those of its kind."""
        return self.embeddings or self.next_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON as they are."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The evaluation that `to_dict` gave these values. InvalidCheckpoint, naming the field, for what is none."""
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
