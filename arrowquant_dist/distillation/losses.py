"""The distance of the student's outputs from the original's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from arrowquant_dist.models.outputs import Outputs

_OF_FINAL = 4.0  # weight of embeddings or next tokens


@dataclass(frozen=True, slots=True)
class BatchShares:
    """The part of a batch that some of its texts are: of its tokens, and of its embeddings or next tokens; 1 for all.

    Means over parts of a batch, each times its share, add up to the mean over the batch, however unequal the parts.
    """

    tokens: float = 1.0
    final: float = 1.0


WHOLE = BatchShares()


def loss_of(
    student: Outputs, teacher: Outputs, *, is_causal: bool, shares: BatchShares = WHOLE
) -> torch.Tensor:
    """The mean over hidden states and tokens of |s − t|² / |t|², plus 4 (1 − cosine) of the embeddings, or, for causal
    models, 4 times the mean KL(teacher ‖ student) of next tokens. shares: the part of a batch that the outputs are."""
    hidden = torch.stack(
        [_relative(mine, theirs) for mine, theirs in zip(student.hidden, teacher.hidden, strict=True)]
    ).mean()
    if not shares.final:  # texts of one token have no next token
        return shares.tokens * hidden
    last = _divergence if is_causal else _distance
    return shares.tokens * hidden + shares.final * _OF_FINAL * last(student.final, teacher.final)


def _relative(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    sizes = theirs.square().sum(-1)
    return ((mine - theirs).square().sum(-1) / sizes.clamp_min(1e-12)).mean()


def _distance(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return 1.0 - torch.nn.functional.cosine_similarity(mine, theirs).mean()


def _divergence(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    p, q = theirs.log_softmax(-1), mine.log_softmax(-1)
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1).mean()
