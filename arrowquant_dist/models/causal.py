"""Next-token distributions of causal language models, one batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from arrowquant_dist.models.tokens import BATCH_TOKENS, TokenizedTexts

MOST_TOKENS = 2048  # per text: with a vocabulary of 151,936, the logits take 1.2 GB in float32
_TRIED = 32  # tokens
_LOGITS_NBYTES = 256 << 20  # logits of one model at a time, for shorter texts


def tokens_at_a_time(model: Any) -> int:
    """Returns the tokens per batch, padding included, for which the logits stay small beside the model."""
    vocabulary: int = model.get_input_embeddings().weight.shape[0]
    return max(1, min(BATCH_TOKENS, _LOGITS_NBYTES // (4 * vocabulary)))


def looks_ahead(model: Any, ids: Sequence[int]) -> bool:
    """Returns whether results for earlier tokens depend on the last one, as in models like BERT whose config does not
    set is_decoder: transformers lists such classes as causal. ids: token ids of a text, two or more."""
    rows = model.get_input_embeddings().weight.shape[0]
    first = [*ids[:_TRIED]]
    pair = torch.tensor([first, [*first[:-1], (first[-1] + 1) % rows]])
    with torch.inference_mode():
        one, other = model(input_ids=pair).logits[:, :-1]
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)


def logits_of(model: Any, texts: TokenizedTexts, batch: Sequence[int]) -> torch.Tensor:
    """Returns float32 [texts of the batch, longest, vocabulary]. Values beyond a text's own length belong to padding.

    Padding is on the right, where earlier positions of a causal model do not see it.
    """
    with torch.inference_mode():
        inputs = texts.inputs(batch)
        inputs.pop("token_type_ids", None)
        logits: torch.Tensor = model(**inputs).logits
        return logits.float()
