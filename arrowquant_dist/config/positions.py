"""The line of a config's file on which a value stands."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any


def line_said(message: str, data: bytes, without: Collection[str] = ()) -> str:
    """` (line 3)` for the value whose place begins `message`, as in `overrides[0].group_size: …`, or for the mapping
    that it is missing in; empty where the file has neither. data: valid YAML. without: keys whose values came from
    elsewhere."""
    import yaml

    places = {
        place: line for place, line in _places(yaml.compose(data, yaml.SafeLoader)) if place not in without
    }
    begun = [
        place
        for place in places
        if message.startswith(place) and message[len(place) :][:1] in (":", ".", "[")
    ]
    return f" (line {places[max(begun, key=len)]})" if begun else ""


def _places(root: Any) -> Iterator[tuple[str, int]]:
    """Place, as errors name it, and line of each key and item. A node that aliases repeat is visited once, so this
    ends."""
    todo, seen = [("", root)], set[int]()
    while todo:
        above, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        inner: list[tuple[str, Any, Any]] = []
        if getattr(node, "id", "") == "mapping":
            named = ((str(key.value), key, value) for key, value in node.value)
            inner = [(f"{above}.{name}" if above else name, key, value) for name, key, value in named]
        elif getattr(node, "id", "") == "sequence":
            inner = [(f"{above}[{index}]", item, item) for index, item in enumerate(node.value)]
        for place, shown, value in inner:
            yield place, shown.start_mark.line + 1
            todo.append((place, value))
