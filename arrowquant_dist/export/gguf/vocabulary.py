"""A model's tokenizer in the form of llama.cpp: tokens, their kinds, and the rules by which a text becomes tokens.

It is made from tokenizer.json, which has all of these; tokenizer_config.json has the roles of special tokens and the
chat template. Anything that llama.cpp would do differently from the tokenizer is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

from arrowquant_dist.errors import InvalidCheckpoint, counted, shortened
from arrowquant_dist.export.gguf.settings import OTHER_WAY, Settings, is_utf8_text
from arrowquant_dist.strict_json import parse_json

Read = Callable[[str], bytes | None]
_BYTE = re.compile("<0x[0-9A-F]{2}>")
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class Kind(IntEnum):
    """The kind of a token, with llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer for llama.cpp.

    model: `gpt2`, `llama` or `bert`, llama.cpp's names for byte pairs, sentencepiece and wordpieces. pre: the rule that
    splits texts before byte pairs are merged. tokens, kinds: one for each row of the embeddings. scores: for `llama`,
    otherwise empty. merges: for `gpt2`, otherwise empty. roles: ids by ROLES. adds: whether `bos`, `eos`, `sep` are put
    around a text. space_prefix: whether a text gets a space before it; None for the model's default. chat_template:
    Jinja, or "". notes: for people.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[Kind, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    roles: Mapping[str, int] = field(default_factory=dict)
    adds: Mapping[str, bool] = field(default_factory=dict)
    space_prefix: bool | None = None
    chat_template: str = ""
    notes: tuple[str, ...] = ()


def json_settings(read: Read, path: str) -> Settings | None:
    """Returns a side file of the dataset that is a JSON object; None if it does not exist."""
    data = read(path)
    if data is None:
        return None
    try:
        value = parse_json(data)
    except ValueError as error:
        raise InvalidCheckpoint(f"{path} is not valid JSON: {error}; correct it and try again") from error
    if not isinstance(value, dict):
        raise InvalidCheckpoint(f"{path} is not a JSON object; correct it and try again")
    return Settings(path, value)


@dataclass(frozen=True)
class Tokens:
    """The contents of tokenizer.json. file: all of it. model: its `model`. by_id: a text for each row of the
    embeddings, None for an id without one. added: {id: whether the added token is special}."""

    file: Settings
    model: Settings
    by_id: tuple[str | None, ...]
    added: Mapping[int, bool]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self.by_id) if text is not None}

    @classmethod
    def of(cls, file: Settings, rows: int) -> Tokens:
        """Reads the tokens. rows: rows of the embeddings; more tokens are refused, `texts_and_kinds` fills up fewer."""
        model = file.part("model")
        vocab = model.part("vocab") if model else None
        if model is None or vocab is None:
            raise file.wrong("model", "an object with the tokens and their ids in `vocab`")
        texts: dict[int, str] = {}
        for text, number in vocab.fields.items():
            _put(texts, text, number, file, rows)
        added = {}
        for token in _added(file):
            _put(texts, token["content"], token["id"], file, rows)
            added[token["id"]] = token["special"]
        return cls(file, model, tuple(texts.get(i) for i in range(rows)), added)

    def texts_and_kinds(
        self, text_of: Callable[[str, Kind], str]
    ) -> tuple[tuple[str, ...], tuple[Kind, ...]]:
        """Returns what llama.cpp needs, with a distinct text for each token. text_of: returns its text for a token of
        a kind.

        Rows without a token become `[PAD7]`, which no text is tokenized to.
        """
        texts: list[str] = []
        kinds: list[Kind] = []
        for number, text in enumerate(self.by_id):
            kind = self.kind_of(number)
            kinds.append(kind)
            texts.append(f"[PAD{number}]" if text is None else text_of(text, kind))
        seen: dict[str, int] = {}
        for number, text in enumerate(texts):
            other = seen.setdefault(text, number)
            if other != number:
                raise self.file.unknown(f"the token {shortened(text)!r} twice, as {other} and {number}")
        return tuple(texts), tuple(kinds)

    def kind_of(self, number: int) -> Kind:
        text, unknown = self.by_id[number], self.model.fields.get("unk_token")
        if text is None:
            return Kind.UNUSED
        if self.model.fields.get("byte_fallback") and (text == unknown or _BYTE.fullmatch(text)):
            return Kind.UNKNOWN if text == unknown else Kind.BYTE
        if number in self.added:
            return Kind.CONTROL if self.added[number] else Kind.USER_DEFINED
        return Kind.NORMAL


def _put(texts: dict[int, str], text: Any, number: Any, file: Settings, rows: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0 or not is_utf8_text(text):
        raise InvalidCheckpoint(
            f"{file.file} has a token that is not a string with an id; correct the file and try again"
        )
    if number >= rows:
        raise InvalidCheckpoint(
            f"{file.file} has the token {shortened(text)!r} with the id {number}, but the embeddings have "
            f"{counted(rows, 'row')}; use the tokenizer of these weights"
        )
    if texts.setdefault(number, text) != text:
        raise InvalidCheckpoint(
            f"{file.file} has {shortened(texts[number])!r} and {shortened(text)!r} as token {number}; correct the file "
            "and try again"
        )


def _added(file: Settings) -> list[dict[str, Any]]:
    added = [] if not file.has("added_tokens") else file.fields["added_tokens"]
    if not isinstance(added, list):
        raise file.wrong("added_tokens", "a list")
    for token in added:
        match token:
            case {"id": int(), "content": str(content), "special": bool()}:
                if token.get("single_word") or (
                    (token.get("lstrip") or token.get("rstrip")) and "mask" not in content
                ):
                    raise file.unknown(
                        f"the token {shortened(content)!r} that takes spaces beside it or matches only whole words"
                    )
            case _:
                raise file.wrong("added_tokens", "a list of tokens, each with id, content and special")
    return added


def normalized_tokens(file: Settings) -> list[str]:
    """Returns the added tokens that are normalized as texts are, and looked for in normalized texts."""
    return [token["content"] for token in _added(file) if token.get("normalized") is True]


def roles_of(read: Read, tokens: Tokens) -> dict[str, int]:
    """Returns ids by ROLES, by name from tokenizer_config.json or special_tokens_map.json, else from config.json."""
    found: dict[str, int] = {}
    for path in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = json_settings(read, path)
        for role in ROLES:
            value = settings.fields.get(f"{role}_token") if settings else None
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and text in tokens.ids:
                found.setdefault(role, tokens.ids[text])
    config = json_settings(read, "config.json")
    for role in ("bos", "eos", "pad"):
        number = config.fields.get(f"{role}_token_id") if config else None
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(tokens.by_id):
            found.setdefault(role, number)
    return found


def around(file: Settings) -> tuple[str | None, str | None]:
    """Returns the special tokens that tokenizer.json puts before and after a text; None for none."""
    processor = file.part("post_processor")
    steps = [] if processor is None else processor.fields.get("processors", [processor.fields])
    before = after = None
    for step in steps if isinstance(steps, list) else [None]:
        match step:
            case {"type": "ByteLevel"}:
                continue
            case {"type": "BertProcessing", "cls": [str(first), int()], "sep": [str(last), int()]}:
                before, after = first, last
            case {"type": "TemplateProcessing", "single": [*parts]}:
                before, after = _template(parts, file)
            case _:
                raise file.unknown("a post_processor other than TemplateProcessing")
    return before, after


def _template(parts: list[Any], file: Settings) -> tuple[str | None, str | None]:
    match parts:
        case [{"Sequence": _}]:
            return None, None
        case [{"SpecialToken": {"id": str(before)}}, {"Sequence": _}]:
            return before, None
        case [{"Sequence": _}, {"SpecialToken": {"id": str(after)}}]:
            return None, after
        case [{"SpecialToken": {"id": str(before)}}, {"Sequence": _}, {"SpecialToken": {"id": str(after)}}]:
            return before, after
    raise file.unknown("a template with more than one special token before or after a text")


def chat_template(read: Read) -> str:
    """Returns chat_template.jinja, or the field of tokenizer_config.json; "" if there is none, or several by name."""
    data = read("chat_template.jinja")
    if data is not None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidCheckpoint("chat_template.jinja is not UTF-8; correct it and try again") from error
    config = json_settings(read, "tokenizer_config.json")
    template = config.fields.get("chat_template") if config else None
    return template if is_utf8_text(template) else ""


def no_tokenizer() -> InvalidCheckpoint:
    return InvalidCheckpoint(
        "the dataset has no tokenizer.json, from which GGUF's tokenizer is made; save it into the source with "
        f"AutoTokenizer.from_pretrained(…).save_pretrained(…) and quantize again, or {OTHER_WAY}"
    )
