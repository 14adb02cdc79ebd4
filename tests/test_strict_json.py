"""JSON of strangers: what is refused, and that nothing else is."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.strict_json import MAX_DEPTH, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(VALUES)
def test_what_python_writes_is_read_as_python_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text.encode()) == json.loads(text)


REFUSED = {
    "deep lists": (b"[" * 200_000 + b"]" * 200_000, "64 deep"),
    "deep objects": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "64 deep"),
    "deep without an end": (b"[" * 200_000, "64 deep"),
    "deep objects without an end": (b'{"":' * 200_000, "64 deep"),
    "deep in turns": (b'[{"a":' * 100_000 + b"1" + b"}]" * 100_000, "64 deep"),
    "one too deep": (b"[" * 65 + b"]" * 65, "64 deep"),
    "deep behind strings with brackets": (b'["]\\"", ' * 100 + b"1" + b"]" * 100, "64 deep"),
    "a string without an end": (b'["' + b'\\"' * 1_000_000 + b"[" * 100, "64 deep|Unterminated"),
    "digits without end": (b'{"a": ' + b"9" * 100_000 + b"}", "100000 digits"),
    "digits with a sign": (b"-" + b"1" * 41, "42 digits"),
    "a number beyond a double": (b"[1e999]", "beyond a double"),
    "a long number beyond a double": (b"[1" + b"0" * 400 + b".5]", "beyond a double"),
    "NaN": (b"[NaN]", "NaN"),
    "Infinity": (b"[-Infinity]", "Infinity"),
    "a key twice": (b'{"a": {"b": 1, "c": 2, "b": 3}}', "'b' twice"),
    "no UTF-8": (b'"\xff"', "utf-8"),
    "UTF-16": ('"a"'.encode("utf-16"), "utf-8"),
    "lists without end": (b"[" + b"[]," * 8_000_000 + b"[]]", "more lists"),
    "values without end": (b"[" + b"0," * 16_000_001 + b"0]", "more lists"),
    "nothing": (b"", "Expecting value"),
    "two documents": (b"1 2", "Extra data"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_hurts_later_is_refused_with_a_short_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(data)
    assert len(str(caught.value)) < 200


READ = {
    "as deep as may be": (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, 64),
    "many brackets side by side": (b"[" + b"[],{}," * 1000 + b"[[]]]", 2001),
    "brackets in strings": (b'["' + b"[{" * 200 + b'"]', 1),
    "quotes and brackets in strings": (b'["' + b'\\"[' * 200 + b'", []]', 2),
}


@pytest.mark.parametrize(("data", "length"), READ.values(), ids=READ.keys())
def test_brackets_that_are_not_nested_are_read(data: bytes, length: int) -> None:
    value = parse_json(data)
    assert value == json.loads(data)
    assert len(value) in (1, length)


def test_numbers_at_the_limits_are_read_exactly() -> None:
    assert parse_json(b"[18446744073709551615, -9223372036854775808, 1e308, 1e-999]") == [
        2**64 - 1,
        -(2**63),
        1e308,
        0.0,
    ]
    assert math.copysign(1, parse_json(b"-0.0")) == -1
