"""Next-token distributions of causal language models, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from arrowquant_dist.models.tokens import BATCH_TOKENS, TokenizedTexts

MOST_TOKENS = 2048  # of a text: 151,936 logits for each take 1.2 GB in float32
_TRIED = 32  # tokens
_LOGITS_NBYTES = 256 << 20  # of one model at a time, where texts are shorter


def tokens_at_a_time(model: Any) -> int:
    """Of a batch, with padding: so many that their logits stay small beside the model."""
    vocabulary: int = model.get_input_embeddings().weight.shape[0]
    return max(1, min(BATCH_TOKENS, _LOGITS_NBYTES // (4 * vocabulary)))


def looks_ahead(model: Any, ids: Sequence[int]) -> bool:
    """Whether what is said of earlier tokens depends on the last one, as with BERT's kind where its config does not say
    is_decoder: transformers has such classes among the causal ones. ids: of a text, two or more."""
    rows = model.get_input_embeddings().weight.shape[0]
    first = [*ids[:_TRIED]]
    pair = torch.tensor([first, [*first[:-1], (first[-1] + 1) % rows]])
    with torch.inference_mode():
        one, other = model(input_ids=pair).logits[:, :-1]
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)


def logits_of(model: Any, texts: TokenizedTexts, batch: Sequence[int]) -> torch.Tensor:
    """float32 [texts of the batch, longest, vocabulary]; what is beyond a text's own length is of padding.

    Padding is at the right, where a causal model's earlier positions do not see it.
    """
    with torch.inference_mode():
        inputs = texts.inputs(batch)
        inputs.pop("token_type_ids", None)
        logits: torch.Tensor = model(**inputs).logits
        return logits.float()
