"""Checks that a dataclass made from JSON holds what its annotations say, at all levels."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_PLAIN: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (float, int),
    str: (str,),
    bool: (bool,),
    NoneType: (NoneType,),
}


def check_types(value: Any, place: str) -> None:
    """Raises TypeError, which names the field, where a field of the dataclass `value`, or of dataclasses in it, has a
    value of another type. place: where `value` stands, for errors.

    Supported are numbers, texts, None, dataclasses, and tuples, dicts and unions of these. A whole number is accepted
    as a float.
    """
    of: Any = type(value)
    for name, kind in _hints(of).items():
        _check(getattr(value, name), kind, f"{place}.{name}" if place else name)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _check(value: Any, kind: Any, place: str) -> None:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (Union, UnionType):
        _check_union(value, inner, place)
    elif origin is tuple and isinstance(value, tuple):
        for i, item in enumerate(value):
            _check(item, inner[0], f"{place}[{i}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            _check(key, inner[0], f"a key of {place}")
            _check(item, inner[1], f"{place}[{key!r:.40}]")
    elif is_dataclass(kind) and isinstance(value, kind):  # type: ignore[arg-type]
        check_types(value, place)
    elif not isinstance(value, _PLAIN.get(kind, ())) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{place} is not of type {getattr(kind, '__name__', kind)}")


def _check_union(value: Any, kinds: tuple[Any, ...], place: str) -> None:
    if value is None and NoneType in kinds:
        return
    [kind] = [kind for kind in kinds if kind is not NoneType]  # all unions in this package are `X | None`
    _check(value, kind, place)
