"""All JSON documents that differ from a given one in a single value."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

OTHERS: tuple[Any, ...] = (
    *(None, True, -1, 10**39, 1.5, "", "x" * 1000, [], {}, [[]], {"x": {}}, ["a", 1], "\x1b[31m<b>\ud7ff"),
)


def mutated(document: Any) -> Iterator[tuple[str, Any]]:
    """Pairs (what was changed, changed document): each value is replaced by each of OTHERS, or left out."""
    for path in _paths(document):
        for other in OTHERS:
            yield f"{path} := {other!r:.20}", _replaced(document, path, other)
        if path and isinstance(path[-1], str):
            yield f"without {path}", _without(document, path)


def changed_at_random(document: Any, random_: random.Random) -> Any:
    """One of the documents of `mutated`, or one in which a number is replaced by another one."""
    path = random_.choice([*_paths(document)])
    value = document
    for key in path:
        value = value[key]
    if path and isinstance(path[-1], str) and random_.random() < 0.1:
        return _without(document, path)
    if isinstance(value, int) and random_.random() < 0.5:
        return _replaced(document, path, value + random_.choice([-1, 1, 2**31, -value, value, 10**12]))
    return _replaced(document, path, random_.choice(OTHERS))


def _paths(value: Any) -> Iterator[tuple[str | int, ...]]:
    yield ()
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:2]))  # items of a list are alike
    for key, inner in items:
        for path in _paths(inner):
            yield (key, *path)


def _replaced(value: Any, path: tuple[str | int, ...], other: Any) -> Any:
    if not path:
        return other
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], other)
    return copy


def _without(value: Any, path: tuple[str | int, ...]) -> Any:
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _without(value[path[0]], path[1:])
    return copy
