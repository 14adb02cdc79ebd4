"""JSON from strangers: read within limits, or refused with the reason.

Python's parser accepts integers of any length, NaN, infinities, repeated keys (the last wins), and nesting up to the
interpreter's recursion limit, and each of these does harm later: in arithmetic, in Arrow, or in code that walks them.
All of it is refused here, once, so that callers have to check types and ranges alone.

Suspicious documents are found by searches in C over a copy of the text, so that checking an ordinary document adds a
few percent to its parsing. Only where a search finds something do exact rules look at each number and each string.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 64  # models, tokenizers and manifests nest less than 10 deep
# The header of a million tensors has half as many. Each takes 64 and 60 bytes of memory, and as few as 3 in the text.
MAX_CONTAINERS, MAX_COMMAS = 8_000_000, 16_000_000
_SHOWN_CHARS = 60
_MAX_DIGITS = 40  # beyond any size there is; whether a number fits its field is for the caller to check
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # also matches one without an end
_BRACKETS = b"[]{}"
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"\\'))
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_NUMBERS_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
# Patterns of numbers that may be beyond the limits: an exponent of three digits may be beyond a double.
_ODD_NUMBERS = (b"0" * _MAX_DIGITS, b"e000", b"e+000")


def parse_json(data: bytes) -> Any:
    """The value of a JSON document in UTF-8. Raises ValueError, with a reason that fits into a sentence.

    Limits beyond the grammar: at most MAX_DEPTH nested containers, MAX_CONTAINERS of them in all, MAX_COMMAS commas,
    integers of at most _MAX_DIGITS digits, finite numbers, no repeated key in an object.
    """
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS or data.count(b",") > MAX_COMMAS:
        raise ValueError("it has more lists, objects or values than any file of a model")
    if _is_deep(data):
        raise ValueError(f"its brackets are nested more than {MAX_DEPTH} deep, or do not match")
    text = data.decode("utf-8")
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, **_number_hooks(data))


def _is_deep(data: bytes) -> bool:
    """Whether brackets are left after MAX_DEPTH rounds, each of which removes all pairs with nothing between them."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    rest = data.translate(None, _NO_STRUCTURE).replace(
        b'""', b""
    )  # removes strings without brackets and escapes
    if b'"' in rest:
        rest = _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        rest = rest.replace(b"[]", b"").replace(b"{}", b"")
    return bool(rest)


def _number_hooks(data: bytes) -> dict[str, Any]:
    """Hooks that check each number, where one may be beyond the limits; Python's own parsing is five times as fast."""
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
    raise ValueError(f"it holds {text}, which is not JSON")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS // 2]}…"
