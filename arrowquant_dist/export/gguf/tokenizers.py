"""Tokenizers of three kinds: turns tokenizer.json into what llama.cpp needs for each."""

from __future__ import annotations

from typing import Any

from arrowquant_dist.config.checks import shown
from arrowquant_dist.errors import listed
from arrowquant_dist.export.gguf.pre_tokenizers import pre_tokenizer_name
from arrowquant_dist.export.gguf.sentencepiece import SPACE, scores_of, space_prefix
from arrowquant_dist.export.gguf.settings import is_utf8_text
from arrowquant_dist.export.gguf.vocabulary import (
    Kind,
    Read,
    Tokens,
    Vocabulary,
    around,
    chat_template,
    json_settings,
    no_tokenizer,
    normalized_tokens,
    roles_of,
)

_CONTINUES = "##"


def read_vocabulary(read: Read, rows: int) -> Vocabulary:
    """Returns the vocabulary. read: reads side files of the dataset. rows: rows of the model's embeddings.

    Raises InvalidCheckpoint if there is no tokenizer.json, or if it is damaged or of a kind that is not known in GGUF.
    """
    file = json_settings(read, "tokenizer.json")
    if file is None:
        raise no_tokenizer()
    tokens = Tokens.of(file, rows)
    kind = tokens.model.fields.get("type")
    if kind == "WordPiece":
        return _wordpieces(tokens, read)
    if kind != "BPE":
        raise file.unknown(f"a tokenizer of type {shown(kind)}")
    _check_byte_pairs(tokens)
    return (
        _sentencepiece(tokens, read)
        if tokens.model.fields.get("byte_fallback")
        else _byte_pairs(tokens, read)
    )


def _check_byte_pairs(tokens: Tokens) -> None:
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        tokens.model.only(name, ("", 0.0), "")


def merges_of(tokens: Tokens) -> list[tuple[str, str]]:
    """Returns the pairs in the order in which they are merged, from either form that tokenizer.json has had."""
    merges = tokens.model.fields.get("merges")
    pairs = (
        [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
        if isinstance(merges, list)
        else []
    )
    if not pairs or not all(_is_pair(pair) for pair in pairs):
        raise tokens.file.wrong("model", "byte pairs with `merges`, each of two strings")
    return [(left, right) for left, right in pairs]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(is_utf8_text(text) and text for text in pair)


def _byte_pairs(tokens: Tokens, read: Read) -> Vocabulary:
    normalizer = tokens.file.part("normalizer")
    if normalizer is not None and normalizer.fields != {"type": "NFC"}:
        raise tokens.file.unknown(f"the normalizer {shown(dict(normalizer.fields))}")
    note = "llama.cpp does not compose accents (NFC) as the tokenizer does: give it composed texts"
    texts, kinds = tokens.texts_and_kinds(lambda text, _: text)
    merges = [f"{left} {right}" for left, right in merges_of(tokens)]
    if any(merge.count(" ") != 1 for merge in merges):
        raise tokens.file.unknown("merges of strings with spaces")
    roles, adds = _ends(tokens, read)
    return Vocabulary(
        model="gpt2",
        pre=pre_tokenizer_name(tokens.file, tokens.model),
        tokens=texts,
        kinds=kinds,
        merges=tuple(merges),
        roles=roles,
        adds=adds,
        chat_template=chat_template(read),
        notes=(note,) if normalizer is not None else (),
    )


def _sentencepiece(tokens: Tokens, read: Read) -> Vocabulary:
    def text_of(text: str, kind: Kind) -> str:
        # llama.cpp looks for these in the text itself, before spaces become SPACE
        return text.replace(SPACE, " ") if kind is Kind.USER_DEFINED else text

    prefix, notes = space_prefix(tokens.file)
    texts, kinds = tokens.texts_and_kinds(text_of)
    roles, adds = _ends(tokens, read)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=texts,
        kinds=kinds,
        scores=scores_of(tokens, merges_of(tokens)),
        roles=roles,
        adds=adds,
        space_prefix=prefix,
        chat_template=chat_template(read),
        notes=notes,
    )


def _ends(tokens: Tokens, read: Read) -> tuple[dict[str, int], dict[str, bool]]:
    """Returns roles, and whether llama.cpp puts a token before and after a text.

    llama.cpp has a default for each role that is not given: a token id of Llama or GPT-2, which may be anything here.
    """
    roles, ids = roles_of(read, tokens), tokens.ids
    before, after = around(tokens.file)
    for role, text in (("bos", before), ("eos", after)):
        if text is None:
            continue
        if text not in ids:
            raise tokens.file.wrong("post_processor", f"made of tokens of the vocabulary, not {shown(text)}")
        if role == "eos" and roles.get("eos", ids[text]) != ids[text]:
            roles["eot"] = roles["eos"]  # what ends an answer, if it differs from what ends a text
        roles[role] = ids[text]
    if "eos" not in roles:
        raise tokens.file.unknown("no eos_token (and neither have tokenizer_config.json and config.json)")
    roles.setdefault("bos", roles["eos"])
    return roles, {"bos": before is not None, "eos": after is not None}


def _wordpieces(tokens: Tokens, read: Read) -> Vocabulary:
    file = tokens.file
    tokens.model.only("continuing_subword_prefix", (_CONTINUES,), _CONTINUES)
    normalizer = file.part("normalizer")
    if normalizer is None or normalizer.fields.get("type") != "BertNormalizer":
        kind = None if normalizer is None else normalizer.fields.get("type")
        raise file.unknown(f"the normalizer {shown(kind)}")
    for step in ("clean_text", "handle_chinese_chars", "lowercase"):
        normalizer.only(step, (True,), default=True)
    normalizer.only("strip_accents", (True,), default=True)
    if file.fields.get("pre_tokenizer") != {"type": "BertPreTokenizer"}:
        raise file.unknown(f"the pre_tokenizer {shown(file.fields.get('pre_tokenizer'))}")

    def text_of(text: str, kind: Kind) -> str:
        if kind is Kind.CONTROL:
            return text
        return text.removeprefix(_CONTINUES) if text.startswith(_CONTINUES) else f"{SPACE}{text}"

    texts, kinds = tokens.texts_and_kinds(text_of)
    roles, ids = roles_of(read, tokens), tokens.ids
    before, after = around(file)
    unknown = tokens.model.fields.get("unk_token")
    if before not in ids or after not in ids or unknown not in ids:
        raise file.unknown("no token before and after a text, or no unknown token")
    roles |= {
        "bos": ids[before],
        "cls": ids[before],
        "eos": ids[after],
        "sep": ids[after],
        "unk": ids[unknown],
    }
    normalized = normalized_tokens(file)
    note = f"{listed(normalized)}: found only as written by llama.cpp, but in upper and lower case by the tokenizer"
    return Vocabulary("bert", "default", texts, kinds, roles=roles, notes=(note,) if normalized else ())
