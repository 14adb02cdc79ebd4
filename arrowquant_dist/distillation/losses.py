"""How far the student's outputs are from the original's."""

from __future__ import annotations

import torch

from arrowquant_dist.models.outputs import Outputs

_OF_FINAL = 4.0


def loss_of(student: Outputs, teacher: Outputs, *, is_causal: bool) -> torch.Tensor:
    """Mean over hidden states and tokens of |s − t|² / |t|², and 4 (1 − cosine) of the embeddings; of causal models
    4 times the mean of KL(teacher ‖ student) of next tokens."""
    hidden = torch.stack(
        [_relative(mine, theirs) for mine, theirs in zip(student.hidden, teacher.hidden, strict=True)]
    ).mean()
    last = _divergence if is_causal else _distance
    return hidden + _OF_FINAL * last(student.final, teacher.final)


def _relative(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    sizes = theirs.square().sum(-1)
    return ((mine - theirs).square().sum(-1) / sizes.clamp_min(1e-12)).mean()


def _distance(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return 1.0 - torch.nn.functional.cosine_similarity(mine, theirs).mean()


def _divergence(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    p, q = theirs.log_softmax(-1), mine.log_softmax(-1)
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1).mean()
