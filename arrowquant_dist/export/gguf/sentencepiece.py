"""Sentencepiece's byte pairs as tokenizer.json has them: with `▁` for spaces, and bytes for what is not a token.

llama.cpp merges whichever neighbours make the token with the best score; tokenizer.json has an ordered list of pairs.
The two agree if all pairs that make a token are adjacent, in the order of the scores, and no pair of tokens that makes
a token is missing. transformers writes them like this. Both conditions are checked.
"""

from __future__ import annotations

from arrowquant_dist.config.checks import shown
from arrowquant_dist.errors import InvalidCheckpoint, listed, shortened
from arrowquant_dist.export.gguf.settings import Settings
from arrowquant_dist.export.gguf.vocabulary import Kind, Tokens, normalized_tokens

SPACE = "▁"
_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_DOUBLED = (
    "where a text begins with a space, or goes on with one after an added token, llama.cpp puts another one before it, "
    "and the tokenizer does not"
)
_AFTER_ADDED = (
    "before what follows an added token in a text, such as one of a chat template, llama.cpp puts a space, and the "
    "tokenizer does not"
)


def space_prefix(file: Settings) -> tuple[bool, tuple[str, ...]]:
    """Returns whether a text gets a space before it, and notes. Raises InvalidCheckpoint if spaces are treated in a way
    not known here."""
    rules = (file.fields.get("normalizer"), file.fields.get("pre_tokenizer"))
    match rules:
        case ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replaced]}, None):
            if replaced == _REPLACED:
                return True, _on_normalized(file)
        case (None, {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": str(scheme)}):
            notes = {"first": (_DOUBLED, _AFTER_ADDED), "always": (_DOUBLED,), "never": ()}
            if scheme in notes:
                return scheme != "never", notes[scheme]
        case (replaced, None) if replaced == _REPLACED:
            return False, ()
    raise file.unknown(f"the normalizer and pre_tokenizer {shown(rules)}")


def _on_normalized(file: Settings) -> tuple[str, ...]:
    """Returns a note on added tokens that get a `▁` before them, as texts do, and are looked for with it."""
    found = normalized_tokens(file)
    return (
        (f"{listed(found)}: found anywhere in a text by llama.cpp, but by the tokenizer only after a space",)
        if found
        else ()
    )


def scores_of(tokens: Tokens, merges: list[tuple[str, str]]) -> tuple[float, ...]:
    """Returns a score for each row: for a token made from others, minus the position of the first pair that makes it;
    otherwise 0.

    merges: pairs in order. Raises InvalidCheckpoint if scores cannot express the same.
    """
    ids, place, last = tokens.ids, dict[str, int](), ""
    for number, (left, right) in enumerate(merges):
        made = left + right
        if made not in ids or (made in place and made != last):
            raise _not_scores(tokens, made)
        place.setdefault(made, number)
        last = made
    known = set(merges)
    for text, number in ids.items():
        if tokens.kind_of(number) is Kind.NORMAL:
            for cut in range(1, len(text)):
                pair = (text[:cut], text[cut:])
                if pair not in known and all(len(part) == 1 or part in ids for part in pair):
                    raise _not_scores(tokens, text)
    return tuple(-float(place.get(text, 0)) if text is not None else 0.0 for text in tokens.by_id)


def _not_scores(tokens: Tokens, text: str) -> InvalidCheckpoint:
    return tokens.file.unknown(
        f"pairs that make the token {shortened(text)!r} in an order that scores of sentencepiece cannot express"
    )
