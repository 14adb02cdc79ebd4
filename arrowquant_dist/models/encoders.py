"""Embeddings of texts: from a sentence-transformers model with its own pooling, or as an encoder's mean over tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader.stream import ProgressCallback
from arrowquant_dist.models.files import SmallFiles
from arrowquant_dist.models.kinds import ModelKind
from arrowquant_dist.models.pair import (
    refuse_no_vocabulary,
    sentence_transformer,
    tokenizer_of,
    transformers_model,
)
from arrowquant_dist.models.source import LayerSource
from arrowquant_dist.models.tokens import (
    TokenizedTexts,
    batches,
    longest_input,
    mean_over_tokens,
    padding_of,
    positions_before_the_first,
    refuse_unknown_ids,
    tokenized,
)

TextsDone = Callable[[int], None]  # called with the number of further texts that have their embedding


@dataclass(frozen=True, slots=True)
class Embedded:
    """The embeddings of texts.

    values: float32 [texts, dimensions], in the order of the texts. tokens: number of tokens of all texts, without
    padding; None if the model has no tokenizer of transformers. cut: number of texts that were longer than `longest`
    tokens. pooling: a description for people. left_over: layers that the model has no place for.
    """

    values: np.ndarray
    tokens: int | None
    cut: int
    longest: int | None
    pooling: str
    left_over: tuple[str, ...] = ()


def embed(
    kind: ModelKind,
    files: SmallFiles,
    source: LayerSource,
    texts: Sequence[str],
    loaded: ProgressCallback | None,
    done: TextsDone,
) -> Embedded:
    """Embeds texts with the model of `files` and the weights of `source`, which are in memory only meanwhile."""
    if kind.name == "sentence-transformers":
        return _of_sentences(sentence_transformer(files, source, loaded), files, texts, done)
    model, left_over = transformers_model(kind, source, loaded)
    return replace(_of_tokens(model, tokenizer_of(files), texts, done), left_over=left_over)


def _of_sentences(model: Any, files: SmallFiles, texts: Sequence[str], done: TextsDone) -> Embedded:
    """Embeds with the model's own modules, prompt, lengths and pooling."""
    from transformers import PreTrainedTokenizerBase

    tokenizer = getattr(model, "tokenizer", None)
    longest = model.max_seq_length if isinstance(model.max_seq_length, int) else None
    lengths, tokens, cut = [len(text) for text in texts], None, 0
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        refuse_no_vocabulary(files)
        whole = [len(ids) for ids in tokenizer([*texts], verbose=False)["input_ids"]]
        lengths = [max(1, min(length, longest or length)) for length in whole]
        tokens, cut = sum(lengths), sum(length > own for length, own in zip(whole, lengths, strict=True))

    def encoded() -> Iterator[tuple[list[int], np.ndarray]]:
        for batch in batches(lengths):
            found = [texts[index] for index in batch]
            yield batch, model.encode(found, batch_size=len(found), show_progress_bar=False)

    return Embedded(_in_order(encoded(), done), tokens, cut, longest, "its own, by sentence-transformers")


def _of_tokens(model: Any, tokenizer: Any, texts: Sequence[str], done: TextsDone) -> Embedded:
    longest = longest_input(tokenizer, model.config, positions_before_the_first(model))
    made = tokenized(tokenizer, texts, longest, padding_of(tokenizer, model.config))
    refuse_unknown_ids(made, model)
    if 0 in made.lengths:
        message = f"text number {made.lengths.index(0) + 1} has no tokens, so it has no embedding"
        raise InvalidConfig(f"{message}; leave it out")
    pooling = "the mean over the tokens of the attention mask"
    return Embedded(
        _in_order(_means(model.base_model, made), done), sum(made.lengths), made.cut, longest, pooling
    )


def _means(base: Any, texts: TokenizedTexts) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields the last hidden states averaged over the tokens that are not padding."""
    for batch in batches(texts.lengths):
        inputs = texts.inputs(batch)
        with torch.inference_mode():
            hidden = base(**inputs).last_hidden_state.float()
            yield batch, mean_over_tokens(hidden, inputs["attention_mask"]).numpy()


def _in_order(found: Iterable[tuple[list[int], np.ndarray]], done: TextsDone) -> np.ndarray:
    """Puts the results of batches in the order of the texts."""
    places: list[int] = []
    values: list[np.ndarray] = []
    for batch, of_batch in found:
        places += batch
        values.append(of_batch.astype(np.float32))
        done(len(batch))
    every = np.concatenate(values)
    ordered = np.empty_like(every)
    ordered[places] = every
    return ordered
