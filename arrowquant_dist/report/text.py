"""Figures and names as people read them."""

from __future__ import annotations

import os
import re
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, Self, TextIO

MISSING = "–"
NO_BREAK = "\xa0"  # a space at which nothing is folded
# A number and its unit, and the sizes of a shape, which a line break would tear apart.
_TOGETHER = re.compile(
    r"(?<=\d) (?=(?:[kMGTP]?B|[kMGTP]|params|s|ms|min|h|%|dB|bits?|×|"
    r"(?:layer|row|object|shard|worker|node|text|token)s?)(?![\w]))|(?<=[×<>≥≤]) (?=\d)|(?<=\dth) (?=percentile)"
)
_ELLIPSIS = "…"
_USUAL_WIDTH = 80  # of a terminal
Form = Callable[[float | None], str]


class LayerName(str):
    """A name from a checkpoint: anything may be in it, so each output form quotes it in its own way."""

    __slots__ = ()


class Verdict(str):
    """A word that judges. tone: `good`, `look`, `bad` or `open`, which pages show as a colour."""

    __slots__ = ("tone",)
    tone: str

    def __new__(cls, word: str, tone: str) -> Self:
        made = super().__new__(cls, word)
        made.tone = tone
        return made


def printable(text: str) -> str:
    """`text` on one line, with control, format (bidi) and line-breaking characters escaped.

    What a terminal would act on never reaches it raw; a lone surrogate is escaped too, as it cannot
    be encoded.
    """
    if text.isprintable():  # which nothing of the above is
        return str(text)
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode("ascii")
    return character


def nbytes(value: float) -> str:
    """Bytes in decimal units, three or four digits: `22.7 MB`."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def params(value: float) -> str:
    """A count of values: `22.7 M`."""
    return _scaled(value, ("", "k", "M", "B", "T"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    unit = 0
    while abs(value) >= 999.5 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f} {units[unit]}".strip()


def bits(nbytes: int, params: int) -> str:
    """How many a value takes."""
    return f"{8 * nbytes / params:.2f} bits"


def times(value: float | None) -> str:
    """A compression ratio: `2.21×`."""
    return f"{value:.2f}×" if value is not None else MISSING


def cosine(value: float | None) -> str:
    return f"{value:.6f}" if value is not None else MISSING


def small(value: float | None) -> str:
    """An error: three significant digits."""
    return f"{value:.3g}" if value is not None else MISSING


def decibel(value: float | None) -> str:
    return f"{value:.1f} dB" if value is not None else MISSING


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 60 else whole_seconds(round(value))


def whole_seconds(value: int) -> str:
    if value < 60:
        return f"{value} s"
    minutes, rest = divmod(value, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min {rest:02d} s" if hours else f"{minutes} min {rest:02d} s"


def rate(value: float | None, unit: str) -> str:
    """`value` a second: unit `B` for bytes, `params` for values."""
    if value is None:
        return MISSING
    return f"{nbytes(value)}/s" if unit == "B" else f"{params(value)} {unit}/s"


def shape(dimensions: tuple[int, ...]) -> str:
    return " × ".join(map(str, dimensions)) if dimensions else "scalar"


def unbreakable(text: str) -> str:
    """`text` with a no-break space wherever a number goes with what comes after it."""
    return _TOGETHER.sub(NO_BREAK, text)


def width_of(text: str) -> int:
    """Columns that a terminal takes for its longest line."""
    if text.isascii() and "\n" not in text:
        return len(text)
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")))


def shortened_names(names: Sequence[str], width: int) -> list[str]:
    """`names`, those that are longer than `width` without some of their middle: `encoder…0.attention.self.key.weight`;
    without their beginning instead where fewer of them look alike then."""
    every = [[shortened_word(name, width, keep) for name in names] for keep in ("begin", "end")]
    return max(every, key=lambda made: len({*made}))


def shortened_word(word: str, width: int, keep: Literal["begin", "end"] = "begin") -> str:
    """`word`, or where it takes more than `width` its beginning and end: of a path or dotted name whole parts, numbers
    among them, which tell blocks of a model apart. keep: `end` goes without the beginning rather than with one part of
    the end alone, or none."""
    if width_of(word) <= width:
        return word
    separator = "/" if "/" in word else "."
    scheme = re.match(r"\w+://|/", word)
    root = scheme.group() if scheme is not None else ""
    parts = word[len(root) :].split(separator)
    heads = (1, 0) if keep == "begin" else (0, 1)
    for least in (2, 1):
        for head in heads:
            for count in range(len(parts) - head - 1, least - 1, -1):
                made = root * (head > 0) + _without_middle(parts, head, count, separator)
                if width_of(made) <= width:
                    return made if 2 * width_of(made) >= width else _cut(word, width)
    return _cut(word, width)


def _without_middle(parts: Sequence[str], head: int, tail: int, separator: str) -> str:
    """The first `head` and the last `tail` of `parts`, and of a name the numbers between them."""
    mark = f"{separator}{_ELLIPSIS}{separator}" if separator == "/" else _ELLIPSIS
    middle = [
        part
        for part in parts[head : len(parts) - tail]
        if (part.isdecimal() or part == "*") and separator == "."
    ]
    ends_with_number = middle and parts[len(parts) - tail - 1] == middle[-1]
    end = separator.join(parts[len(parts) - tail :])
    kept = [*parts[:head], *middle[: len(middle) - bool(ends_with_number)]]
    last = separator.join([middle[-1], end]) if ends_with_number else end
    begin = "" if head else mark.lstrip("/")
    return begin + mark.join([*kept, last])


def _cut(word: str, width: int) -> str:
    """A third of the room for the beginning; the end tells more."""
    begin = max((width - 1) // 3, 0)
    end = max(width - 1 - begin, 0)
    made = f"{word[:begin]}{_ELLIPSIS}{word[len(word) - end :]}"
    while width_of(made) > width and end > 0:  # of characters that take two columns
        end -= 1
        made = f"{word[:begin]}{_ELLIPSIS}{word[len(word) - end :]}"
    return made


def folded(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; a number stays with its unit. A word that is longer, as a path may be, has
    a line of its own: shortened it would be no path any more."""
    wrapped = textwrap.wrap(unbreakable(text), max(width, 1), break_long_words=False, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in wrapped] or [""]


def terminal_width(out: TextIO) -> int:
    """Columns of the terminal that `out` is: what COLUMNS says, else what the terminal itself does."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(out.fileno()).columns or _USUAL_WIDTH
    except (OSError, ValueError):  # ValueError: no file at all, or one that is closed
        return _USUAL_WIDTH
