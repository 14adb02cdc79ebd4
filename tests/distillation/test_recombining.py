"""New texts consist of tokens of the given ones, have their lengths, and are the same wherever and whenever they are
made."""

from __future__ import annotations

from itertools import pairwise

import pytest

from arrowquant_dist.distillation.recombining import Recombining
from arrowquant_dist.models.tokens import TokenizedTexts

FIRST, LAST = 101, 102
INNER = [range(1000 * text, 1000 * text + length) for text, length in enumerate((30, 46, 1, 9, 46, 0, 17), 1)]
IDS = tuple([FIRST, *tokens, LAST] for tokens in INNER)
EVERY = range(len(IDS))


def texts(ids: tuple[list[int], ...] = IDS) -> TokenizedTexts:
    return TokenizedTexts(ids, tuple([0] * len(own) for own in ids), 0, 0)


def test_lengths_and_the_tokenizers_own_tokens_stay() -> None:
    made = Recombining(texts(), 0).made_of(EVERY, 1)
    assert made.lengths == texts().lengths
    assert made.types == texts().types
    given = {token for tokens in INNER for token in tokens}
    for ids in made.ids:
        assert (ids[0], ids[-1]) == (FIRST, LAST)
        assert given.issuperset(ids[1:-1])


def test_a_text_is_the_same_whatever_else_is_made_and_another_in_each_epoch_and_seed() -> None:
    made = Recombining(texts(), 3)
    whole = made.made_of(EVERY, 2).ids
    assert made.made_of([4, 1], 2).ids == (whole[4], whole[1])
    assert Recombining(texts(), 3).made_of(EVERY, 2).ids == whole
    for other in (made.made_of(EVERY, 1), Recombining(texts(), 4).made_of(EVERY, 2)):
        assert all(other.ids[number] != whole[number] != IDS[number] for number in (0, 1, 4))


def test_a_text_is_a_beginning_and_an_end() -> None:
    """But for the few tokens that come from elsewhere: neighbours stay neighbours, of the text it stands for too."""
    made = Recombining(texts(), 0)
    new = [ids[1:-1] for epoch in range(50) for ids in made.made_of([1], epoch).ids]
    kept = sum(later == earlier + 1 for ids in new for earlier, later in pairwise(ids))
    own = sum(token in INNER[1] for ids in new for token in ids)
    assert kept > 0.8 * 45 * len(new)
    assert 0.35 < own / (46 * len(new)) < 0.85
    assert all(any(token in INNER[1] for token in ids) for ids in new)


@pytest.mark.parametrize("ids", [([FIRST, LAST], [FIRST, LAST]), ([FIRST, 7, LAST],) * 2, ([5], [])])
def test_texts_with_nothing_to_recombine_stay(ids: tuple[list[int], ...]) -> None:
    assert Recombining(texts(ids), 0).made_of(range(2), 1).ids == ids
