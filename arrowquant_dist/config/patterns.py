"""Patterns of layer names: a word, a glob or a /regex/."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import islice

from arrowquant_dist.config.checks import check_text, invalid

Matcher = Callable[[str], bool]

MAX_PATTERN_CHARS = 256
_GLOB_CHARS = frozenset("*?[")
_MAX_CANDIDATES = 1_000
_PART = re.compile(r"(?:^|(?<=[./]))\d+(?=[./]|$)")
OF_A_BLOCK = r"(?:^|[./_])(?:layers?|blocks?|blk|h|resblocks)[./_]"  # what precedes the number of a block
_BLOCK = re.compile(rf"({OF_A_BLOCK})\d+(?=[./_]|$)", re.IGNORECASE)


def check_pattern(key: str, pattern: object) -> None:
    """Raises InvalidConfig, which names `key`, unless `matcher` accepts `pattern`."""
    check_text(key, pattern)
    text = str(pattern)
    if only_name(text) is not None:
        return
    if len(text) > MAX_PATTERN_CHARS:
        raise invalid(key, f"has {len(text)} characters, but a pattern has at most {MAX_PATTERN_CHARS}")
    if text == "//":
        raise invalid(key, "is an empty regex, which matches everything; write '*' if that is meant")
    try:
        matcher(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise invalid(key, f"{text!r} is not a valid regex: {error}") from error


@lru_cache(maxsize=1024)
def matcher(pattern: str) -> Matcher:
    """Whether a name matches `pattern`, case-sensitively.

    `/regex/` is searched in the name; a pattern with `*`, `?` or `[` is a glob over the whole name; anything
    else is a word that matches as a part of the name. Raises re.error.
    """
    only = only_name(pattern)
    if only is not None:
        return lambda name: name == only
    if len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
        search = re.compile(pattern[1:-1]).search
        return lambda name: search(name) is not None
    if _GLOB_CHARS.intersection(pattern):
        whole = re.compile(fnmatch.translate(pattern)).match
        return lambda name: whole(name) is not None
    return lambda name: pattern in name


def exactly(name: str) -> str:
    """A pattern that matches `name` and no other."""
    return f"/^{re.escape(name)}$/"


def only_name(pattern: str) -> str | None:
    """The name that a pattern of `exactly` matches; None for any other pattern."""
    if not (pattern.startswith("/^") and pattern.endswith("$/")):
        return None
    name = re.sub(r"\\(.)", r"\1", pattern[2:-2])
    return name if name and exactly(name) == pattern else None


def without_numbers(name: str) -> str:
    """The name with each number replaced by 0: equal for names that differ in their numbers alone."""
    return re.sub(r"\d+", "0", name)


def starred(name: str) -> str:
    """The name with `*` for each number that is a whole part of it or counts blocks: equal for layers with the same
    place in their blocks. `layer.3.` and `layer_3/` become `layer.*.` and `layer_*/`; `fc1` and `wi_0` stay."""
    return _PART.sub("*", _BLOCK.sub(r"\1*", name))


def nearest_names(pattern: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` names that look most like `pattern`, best first.

    Layers that differ in their numbers alone count once, so a model of 100,000 layers takes no longer than
    its block. The dotted parts are compared, since a pattern is mostly a part of a name.
    """
    kinds: dict[str, str] = {}
    for name in names:
        kinds.setdefault(without_numbers(name), name)
    wanted = [part for part in re.split(r"[^0-9A-Za-z_]+", pattern) if part]
    scored = [(_likeness(wanted, kind), name) for kind, name in islice(kinds.items(), _MAX_CANDIDATES)]
    ranked = sorted(scored, key=lambda pair: -pair[0])  # stable: the earlier name of two alike
    return [name for likeness, name in ranked[:count] if likeness > 0.5]


def _likeness(wanted: list[str], kind: str) -> float:
    """Mean over the wanted parts of the best ratio (0 to 1) with a part of the name."""
    if not wanted:
        return 0.0
    parts = kind.split(".")
    return sum(max(_ratio(want, part) for part in parts) for want in wanted) / len(wanted)


@lru_cache(maxsize=1 << 14)
def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a[:200], b[:200], autojunk=False).ratio()
