"""JSON of strangers: read within limits, or refused with the reason.

Python's parser takes integers of any length, NaN, infinities, the last of two equal keys, and nesting up to the
interpreter's recursion limit, and each of these hurts later: in arithmetic, in Arrow, in whoever walks the values. All
of it is refused here, once, so that callers have to check types and ranges alone.

What decides is found by searches in C over a copy of the text, so that a document without surprises costs a few
percent more than its parsing. Where they find something, exact rules look at each number and each string.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 64  # what models, tokenizers and manifests have is below 10
# A million tensors' header has half as many. Each takes 64 and 60 bytes of memory and may take 3 in the text.
MAX_CONTAINERS, MAX_COMMAS = 8_000_000, 16_000_000
_SHOWN_CHARS = 60
_MAX_DIGITS = 40  # beyond any size there is; whether one fits its place is for the caller to say
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # one without an end matches too
_BRACKETS = b"[]{}"
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"\\'))
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_NUMBERS_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
# An exponent of three digits may be beyond a double.
_ODD_NUMBERS = (b"0" * _MAX_DIGITS, b"e000", b"e+000")


def parse_json(data: bytes) -> Any:
    """The value of a JSON document in UTF-8. ValueError, with a reason that fits a sentence.

    Beyond the grammar: at most MAX_DEPTH containers in each other, MAX_CONTAINERS of them, MAX_COMMAS between values,
    integers of at most _MAX_DIGITS digits, finite numbers, no key twice in one object.
    """
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS or data.count(b",") > MAX_COMMAS:
        raise ValueError("it has more lists, objects or values than any file of a model")
    if _is_deep(data):
        raise ValueError(f"its brackets are nested more than {MAX_DEPTH} deep, or do not match")
    text = data.decode("utf-8")
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, **_number_hooks(data))


def _is_deep(data: bytes) -> bool:
    """Whether brackets are left once those that close what was opened just before vanished, level by level."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    rest = data.translate(None, _NO_STRUCTURE).replace(
        b'""', b""
    )  # strings without brackets and escapes are gone
    if b'"' in rest:
        rest = _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        rest = rest.replace(b"[]", b"").replace(b"{}", b"")
    return bool(rest)


def _number_hooks(data: bytes) -> dict[str, Any]:
    """Python's own parsing of numbers, which is five times as fast, unless one may be beyond the limits."""
    alike = data.translate(_NUMBERS_ALIKE)
    if not any(odd in alike for odd in _ODD_NUMBERS):
        return {}
    return {"parse_int": _int, "parse_float": _float}


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"the integer {_short(text)} has {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {_short(text)} is beyond a double")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {_short(twice)!r} twice")
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no JSON")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS // 2]}…"
