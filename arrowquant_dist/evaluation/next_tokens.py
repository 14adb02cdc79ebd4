"""Figures that compare two sets of next-token distributions over the same positions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.evaluation.embeddings import WHAT_TO_DO, Whose
from arrowquant_dist.report.evaluation import NextTokenFigures

if TYPE_CHECKING:
    import torch

_CHUNK_VALUES = 2 << 20  # logits at a time in float64, 16 MiB for each model


@dataclass(slots=True)
class NextTokens:
    """Collects positions and computes figures over them. Those of each text are kept apart and summed in the order of
    the texts, so that batches make no difference but rounding in their floating-point products.

    texts: number of texts.
    """

    texts: int
    _found: dict[int, np.ndarray] = field(default_factory=dict)

    def add(
        self, text: int, original: torch.Tensor, quantized: torch.Tensor, following: torch.Tensor
    ) -> None:
        """Adds the positions of a text. original, quantized: float32 logits [positions, vocabulary]. following: int64
        [positions], the token that comes next. Raises UnquantizableWeights for logits that are not finite."""
        step = max(1, _CHUNK_VALUES // original.shape[1])
        parts = [
            _measured(
                original[start : start + step],
                quantized[start : start + step],
                following[start : start + step],
            )
            for start in range(0, len(following), step)
        ]
        found = np.concatenate(parts, axis=1)
        if not np.isfinite(found).all():
            whose: Whose = (
                "the original" if bool((original.isnan() | original.isposinf()).any()) else "the dataset"
            )
            message = (
                f"text number {text + 1} gets next-token probabilities of {whose} that are not finite; "
                f"{WHAT_TO_DO[whose]}"
            )
            raise UnquantizableWeights(message)
        self._found[text] = found

    def figures(self) -> NextTokenFigures:
        """The figures over all positions, of which there must be one."""
        found = np.concatenate(
            [self._found[text] for text in range(self.texts) if text in self._found], axis=1
        )
        nll_original, nll, kl, agrees = (math.fsum(row) / row.size for row in found)
        return NextTokenFigures(
            positions=int(found.shape[1]),
            perplexity_original=_exp(nll_original),
            perplexity=_exp(nll),
            excess=math.expm1(min(nll - nll_original, _MOST)),
            kl_mean=kl,
            top1_agreement=agrees,
        )


_MOST = 700.0  # exp of this fits into float64


def _exp(value: float) -> float:
    return math.exp(min(value, _MOST))


def _measured(original: torch.Tensor, quantized: torch.Tensor, following: torch.Tensor) -> np.ndarray:
    """float64 [4, positions]: −ln p and −ln q of the next token, Σ p ln(p/q), and 1 where the most likely token is the
    same."""
    import torch

    p, q = original.double().log_softmax(-1), quantized.double().log_softmax(-1)
    chosen = following[:, None]
    terms = torch.where(
        p.isneginf(), 0.0, p.exp() * (p - q)
    )  # some models give -inf to the vocabulary's padding
    same = original.argmax(-1) == quantized.argmax(-1)
    rows = (-p.gather(1, chosen)[:, 0], -q.gather(1, chosen)[:, 0], terms.sum(-1), same.double())
    return torch.stack(rows).numpy()
