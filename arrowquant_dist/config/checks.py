"""Strict checks of single values; errors name the key and the reason. A bool is not a number, "128" is not 128."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from arrowquant_dist.errors import InvalidConfig, listed

_KINDS = {
    bool: "the yes/no value",
    int: "the number",
    float: "the number",
    str: "the text",
    list: "the list",
    tuple: "the list",
    dict: "the mapping",
}
# Names of settings in other quantizers, and ours.
_CALLED_HERE = {
    **dict.fromkeys(
        ("bits", "num_bits", "w_bits", "wbits", "nbits", "load_in_8bit", "load_in_4bit"), "quant_type"
    ),
    **dict.fromkeys(("sym", "asymmetric", "zero_point"), "symmetric"),
    **dict.fromkeys(("q_group_size", "groupsize", "block_size"), "group_size"),
    **dict.fromkeys(("ignore", "modules_to_not_convert", "skip_modules"), "mixed_precision_layers"),
    **dict.fromkeys(("num_workers", "n_workers"), "workers"),
}
_MAX_SHOWN_CHARS = 18  # the shortest keys that cloud providers issue have 20
_MAX_SHOWN_BITS = 1024
_MAX_OPTIONS = 10_000
_SECRET = re.compile(r"(?i)secret|token|password|passwd|credential|[_-]key|://")


def invalid(key: str, reason: str) -> InvalidConfig:
    return InvalidConfig(f"{key}: {reason}")


@contextmanager
def within(prefix: str) -> Iterator[None]:
    """Adds to errors the place of a nested value: `group_size: …` becomes `overrides[0].group_size: …`."""
    try:
        yield
    except InvalidConfig as error:
        raise InvalidConfig(f"{prefix}.{error.message}", uri=error.uri) from error


def shown(value: Any) -> str:
    """`value` with its kind, cut short: it may be huge, or a YAML alias bomb whose repr never ends.

    Only the kind of lists and mappings is shown: they may be a part of the file that holds credentials.
    """
    if value is None:
        return "nothing (null)"
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str) and not _may_be_shown(value):
        return f"the text of {len(value)} characters"
    if isinstance(value, list | tuple | Mapping) and len(value):
        return kind_of(value)
    return f"{kind_of(value)} {reprlib.repr(value)}"


def kind_of(value: Any) -> str:
    """The kind of `value`, all that may be shown of a possible secret."""
    return _KINDS.get(type(value), f"the {type(value).__name__}")


def _may_be_shown(text: str) -> bool:
    """Whether `text` is neither a URL, which may hold credentials, nor a key, a token, or words around one."""
    return len(text) <= _MAX_SHOWN_CHARS and not _SECRET.search(text)


def check_bool(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise invalid(key, f"must be true or false, not {shown(value)}{_as_python(value, 'bool')}")


def check_whole(key: str, value: Any, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        is_quoted = isinstance(value, str) and value.isdecimal()
        hint = "; leave out the quotes" if is_quoted else _as_python(value, "int")
        raise invalid(key, f"must be a whole number, not {shown(value)}{hint}")
    if not lowest <= value <= highest:
        raise invalid(key, f"must be from {lowest} to {highest}, not {shown(value)}")


def check_number(key: str, value: Any, lowest: float, highest: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(key, f"must be a number, not {shown(value)}{_as_python(value, 'float')}")
    if not lowest <= value <= highest:
        raise invalid(key, f"must be from {lowest:g} to {highest:g}, not {shown(value)}")


def check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        hint = (
            "; quote it, YAML reads yes, no, on and off as true and false" if isinstance(value, bool) else ""
        )
        raise invalid(key, f"must be a string, not {shown(value)}{hint}")
    if not value:
        raise invalid(key, "must not be empty")


def check_choice(key: str, value: Any, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        near = nearest(value, choices) if isinstance(value, str) else None
        hint = f"; did you mean {near!r}?" if near else ""
        raise invalid(key, f"must be one of {', '.join(choices)}, not {shown(value)}{hint}")


def check_mapping(key: str, value: Any) -> Mapping[str, Any]:
    """Returns `value`; raises InvalidConfig unless it is a mapping whose keys are texts."""
    if not isinstance(value, Mapping):
        raise invalid(key, f"must be a mapping of keys to values, not {shown(value)}")
    for name in value:
        if not isinstance(name, str):
            raise invalid(key, f"has the key {reprlib.repr(name)}, which is not a string; quote it")
    return value


def as_tuple(key: str, values: Any) -> tuple[Any, ...]:
    """The values of a list as a tuple. Raises InvalidConfig for anything else."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        hint = f"; write [{values}]" if isinstance(values, str) and values in shown(values) else ""
        raise invalid(key, f"must be a list, not {shown(values)}{hint}")
    return tuple(values)


def check_options(key: str, value: Any) -> dict[str, Any]:
    """A copy of options that may hold credentials, so errors show nothing of them. They may have at most _MAX_OPTIONS
    values in all, counted as often as YAML's aliases repeat them."""
    if not isinstance(value, Mapping):
        raise invalid(key, f"must be a mapping of keys to values, not {kind_of(value)}")
    if not all(isinstance(name, str) for name in value):
        raise invalid(key, "has a key which is not a string; quote it")
    if _count(value, _MAX_OPTIONS) > _MAX_OPTIONS:
        raise invalid(
            key, f"has more than {_MAX_OPTIONS} values, or contains itself; write out what is needed"
        )
    return dict(value)


def _count(value: Any, most: int) -> int:
    """Number of values in nested lists and mappings; counting stops beyond `most`."""
    counted, todo = 0, [value]
    while todo and counted <= most:
        found = todo.pop()
        counted += 1
        if isinstance(found, Mapping):
            todo += [*found.values()]
        elif isinstance(found, list | tuple):
            todo += found
    return counted


def check_keys(given: Mapping[str, Any], known: Collection[str], elsewhere: Mapping[str, str]) -> None:
    """Raises InvalidConfig, with the nearest known key, for unknown keys. elsewhere: {key: where it belongs}."""
    for key in given:
        if key in known:
            continue
        if key in elsewhere:
            raise invalid(_plain(key), f"does not belong here; it belongs {elsewhere[key]}")
        near = _CALLED_HERE[key] if _CALLED_HERE.get(key) in known else nearest(key, known)
        hint = f"the nearest is {near!r}" if near else f"known are {listed(known)}"
        raise invalid(_plain(key), f"is not a known key; {hint}")


def _as_python(value: Any, kind: str) -> str:
    """A hint for numbers of numpy or torch, which neither YAML nor JSON has."""
    is_foreign = type(value).__module__ in ("numpy", "torch", "decimal", "fractions")
    return f"; give it as {kind}(…)" if is_foreign else ""


def _plain(key: str) -> str:
    return key if key.isidentifier() and len(key) <= 60 else reprlib.repr(key)


def nearest(word: str, known: Collection[str]) -> str | None:
    found = difflib.get_close_matches(word[:200], known, n=1, cutoff=0.5)
    return found[0] if found else None
