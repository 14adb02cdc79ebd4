"""Texts as the numbers that a model of transformers takes, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from arrowquant_dist.errors import InvalidConfig

BATCH_TOKENS = 4096  # including padding; a text that is longer by itself is a batch of its own
_NO_LIMIT = 1 << 20  # tokenizers that know no length report 10^30
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Tokenized texts.

    ids: ids of each text, including special tokens, cut to what the model takes. types: token_type_ids, if the
    tokenizer makes them. cut: number of texts that were longer. pad: id that fills up shorter texts in a batch, and
    counts nowhere.
    """

    ids: tuple[Sequence[int], ...]
    types: tuple[Sequence[int], ...] | None
    cut: int
    pad: int

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    def only(self, indices: Sequence[int]) -> TokenizedTexts:
        """Returns these texts, in this order."""
        types = None if self.types is None else tuple(self.types[index] for index in indices)
        return TokenizedTexts(tuple(self.ids[index] for index in indices), types, self.cut, self.pad)

    def inputs(self, indices: Sequence[int], least: int = 0) -> dict[str, torch.Tensor]:
        """Returns input_ids, attention_mask and perhaps token_type_ids of these texts, int64 [texts, longest], padded
        on the right to at least `least` tokens."""
        longest = max(least, *(len(self.ids[index]) for index in indices))
        found = {"input_ids": _padded([self.ids[i] for i in indices], longest, self.pad)}
        found["attention_mask"] = _padded([[1] * len(self.ids[i]) for i in indices], longest, 0)
        if self.types is not None:
            found["token_type_ids"] = _padded([self.types[i] for i in indices], longest, 0)
        return found


def tokenized(tokenizer: Any, texts: Sequence[str], longest: int | None, pad: int) -> TokenizedTexts:
    """Tokenizes as the tokenizer does by default. Texts of more than `longest` tokens are cut by the tokenizer's own
    truncation, which keeps a special token at the end if there is one. pad: the id for padding."""
    whole = tokenizer([*texts], verbose=False)
    cut = 0
    if longest is not None:
        cut = sum(len(ids) > longest for ids in whole["input_ids"])
        if cut:
            whole = tokenizer([*texts], verbose=False, truncation=True, max_length=longest)
    types = tuple(whole["token_type_ids"]) if "token_type_ids" in whole else None
    return TokenizedTexts(tuple(whole["input_ids"]), types, cut, pad)


def longest_input(tokenizer: Any, config: Any, positions_lost: int = 0) -> int | None:
    """Returns the most tokens that a model takes at a time: the lower of the tokenizer's and the config's limit, or
    None.

    positions_lost: how many of the config's positions no token can have.
    """
    found = [getattr(config, key, None) for key in _LENGTHS]
    limits = [value - positions_lost for value in found if isinstance(value, int) and value > 0][:1]
    own = getattr(tokenizer, "model_max_length", None)
    if isinstance(own, int) and 0 < own < _NO_LIMIT:
        limits.append(own)
    return min(limits, default=None)


def padding_of(tokenizer: Any, config: Any) -> int:
    """Returns an id of the vocabulary for padding: the model's own if it has one, since models like RoBERTa count
    positions by it."""
    for found in (tokenizer.pad_token_id, getattr(config, "pad_token_id", None)):
        if isinstance(found, int) and found >= 0:
            return found
    return 0


def refuse_unknown_ids(texts: TokenizedTexts, model: Any) -> None:
    """Raises InvalidConfig if the tokenizer gives ids for which the model has no embeddings."""
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max((max(ids, default=0) for ids in texts.ids), default=0)
    if highest >= rows:
        message = f"its tokenizer gives a token the id {highest}, but the model has embeddings for {rows}; use its own"
        raise InvalidConfig(message)


def batches(lengths: Sequence[int], most: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Yields indices of texts that go through a model together: at most `most` tokens including padding, or a single
    text. The longest come first, so that the most memory is taken at once, and similar lengths together, so that there
    is little padding. Texts without tokens are left out."""
    order = sorted((index for index, length in enumerate(lengths) if length), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def positions_before_the_first(model: Any) -> int:
    """Returns the number of positions that no token has: models like RoBERTa start after the padding's position."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            return padding + 1
    return 0


def mean_over_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean over tokens that are not padding, Σ mask · h / Σ mask, as [texts, width]. hidden: [texts,
    tokens, width]. mask: [texts, tokens]."""
    wide = mask.unsqueeze(-1).float()
    return (hidden * wide).sum(1) / wide.sum(1)


def _padded(rows: Sequence[Sequence[int]], longest: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64)
