"""Texts in batches: which are put together, how they are padded, and how long they may be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.models.tokens import (
    TokenizedTexts,
    batches,
    longest_input,
    padding_of,
    refuse_unknown_ids,
)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100))
def test_every_text_with_tokens_is_in_one_batch_that_holds_the_budget(lengths: list[int], most: int) -> None:
    found = [*batches(lengths, most)]
    assert sorted(index for batch in found for index in batch) == [i for i, n in enumerate(lengths) if n]
    for batch in found:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= most
    heads = [max(lengths[index] for index in batch) for batch in found]
    assert heads == sorted(heads, reverse=True)


def test_shorter_texts_are_padded_at_the_right() -> None:
    texts = TokenizedTexts(((5, 6, 7), (8,), (9, 9)), ((0, 0, 1), (0,), (0, 1)), 0, pad=3)
    inputs = texts.inputs([2, 0])
    assert {name: value.tolist() for name, value in inputs.items()} == {
        "input_ids": [[9, 9, 3], [5, 6, 7]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "token_type_ids": [[0, 1, 0], [0, 0, 1]],
    }
    assert {value.dtype for value in inputs.values()} == {torch.int64}


@pytest.mark.parametrize(
    ("tokenizer", "config", "expected"),
    [
        (512, {"max_position_embeddings": 1024}, 512),
        (10**30, {"max_position_embeddings": 1024}, 1024),
        (10**30, {"n_positions": 256}, 256),
        (None, {}, None),
        (10**30, {"max_position_embeddings": None}, None),
    ],
)
def test_a_text_may_be_as_long_as_both_say(
    tokenizer: Any, config: dict[str, Any], expected: int | None
) -> None:
    words = SimpleNamespace(model_max_length=tokenizer)
    assert longest_input(words, SimpleNamespace(**config)) == expected


def test_padding_is_the_tokenizer_s_then_the_model_s_then_any() -> None:
    assert padding_of(SimpleNamespace(pad_token_id=4), SimpleNamespace(pad_token_id=1)) == 4
    assert padding_of(SimpleNamespace(pad_token_id=None), SimpleNamespace(pad_token_id=1)) == 1
    assert padding_of(SimpleNamespace(pad_token_id=None), SimpleNamespace(pad_token_id=-1)) == 0


def test_tokens_that_the_model_has_no_row_for_are_refused() -> None:
    model = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(8, 2))
    refuse_unknown_ids(TokenizedTexts(((1, 7), ()), None, 0, 0), model)
    with pytest.raises(
        InvalidConfig, match="its tokenizer gives a token the id 8, but the model has embeddings for 8"
    ):
        refuse_unknown_ids(TokenizedTexts(((1, 7), (8,)), None, 0, 0), model)
