"""Selects names of a dataset by lists and globs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from arrowquant_dist.config.checks import shown
from arrowquant_dist.errors import InvalidConfig, UnknownLayer, counted, listed

_WILD = "*?["


def choose(names: str | Iterable[str] | None, known: Sequence[str], uri: str) -> list[str]:
    """Returns those of `known` that `names` select, in the order given; matches of a glob in the order of `known`.

    names: a name or glob (`*`, `?`, `[…]`, matched against the whole name, case-sensitive), or several; None for all.
    A name that is selected more than once comes once, in its first place. A word that is itself a known name means that
    name, even if it contains such characters. Raises UnknownLayer, with similar names, where a word matches nothing,
    and InvalidConfig for anything that is not a string.
    """
    if names is None:
        return [*known]
    found: dict[str, None] = {}
    there = frozenset(known)
    unknown: list[str] = []
    for word in [names] if isinstance(names, str) else _listed(names, uri):
        if word in there:
            found[word] = None
            continue
        matching = [name for name in known if fnmatchcase(name, word)] if _is_glob(word) else []
        found.update(dict.fromkeys(matching))
        if not matching:
            unknown.append(word)
    if unknown:
        raise _unknown(unknown, known, uri)
    return [*found]


def _listed(names: Any, uri: str) -> list[str]:
    try:
        words = [*names]
    except TypeError:
        words = [names]
    for word in words:
        if not isinstance(word, str):
            message = (
                f"layer names and globs have to be strings, not {shown(word)}; loader.keys() lists the names"
            )
            raise InvalidConfig(message, uri=uri)
    return words


def _is_glob(word: str) -> bool:
    return any(sign in word for sign in _WILD)


def _unknown(words: Sequence[str], known: Sequence[str], uri: str) -> UnknownLayer:
    word = words[0]
    near = difflib.get_close_matches(_without_wildcards(word), known, 3, 0.5)
    hint = (
        f"did you mean {listed(near)}?"
        if near
        else f"it has {counted(len(known), 'other')}; loader.keys() lists the names"
    )
    others = f" (the same is true of {listed(words[1:])})" if len(words) > 1 else ""
    kind = (
        "the glob matches none of the dataset's layers" if _is_glob(word) else "the dataset has no such layer"
    )
    return UnknownLayer(f"{kind}{others}; {hint}", layer=word, uri=uri)


def _without_wildcards(word: str) -> str:
    return "".join(letter for letter in word if letter not in "*?[]!")
