"""Formats figures and names for people to read."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, Self, TextIO

MISSING = "–"
# What phase `compile` was spent on: receipts do not tell compiling from loading.
INTO_KERNELS = "went into making kernels ready: compiling them, once on a machine, or loading them"
NO_BREAK = "\xa0"  # a space at which lines are not wrapped
# Spaces at which a line must not break: between a number and its unit, and between the sizes of a shape.
_TOGETHER = re.compile(
    r"(?<=\d) (?=(?:[kMGTP]?B|[kMGTP]|params|s|ms|min|h|%|dB|bits?|×|"
    r"(?:layer|row|object|shard|worker|node|text|token)s?)(?![\w]))|(?<=[×<>≥≤]) (?=\d)|(?<=\dth) (?=percentile)"
)
_ELLIPSIS = "…"
_USUAL_WIDTH = 80  # of a terminal
Form = Callable[[float | None], str]


class LayerName(str):
    """A name from a checkpoint. It may contain anything, so each output format quotes it in its own way."""

    __slots__ = ()


class Verdict(str):
    """A word that states a verdict. tone: `good`, `look`, `bad` or `open`, which pages show as a colour."""

    __slots__ = ("tone",)
    tone: str

    def __new__(cls, word: str, tone: str) -> Self:
        made = super().__new__(cls, word)
        made.tone = tone
        return made


def printable(text: str) -> str:
    """`text` on one line, with control, format (bidi) and line-breaking characters escaped.

    So a terminal never gets anything that it would act on. Lone surrogates are escaped too, because they cannot be
    encoded.
    """
    if text.isprintable():  # none of the characters above is printable
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


def moment(at: str) -> str:
    """A moment, to the second: `2026-11-28 18:00:00 UTC`. at: ISO 8601 in UTC."""
    return f"{at[:19].replace('T', ' ')} UTC"


def minute(at: str) -> str:
    """A moment, to the minute: `2026-11-28 18:00 UTC`. at: ISO 8601 in UTC."""
    return f"{at[:16].replace('T', ' ')} UTC"


def bits(nbytes: int, params: int) -> str:
    """Bits per value: `4.50 bits`."""
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
    """A rate per second. unit: `B` for bytes, or the unit of a count, such as `params`."""
    if value is None:
        return MISSING
    return f"{nbytes(value)}/s" if unit == "B" else f"{params(value)} {unit}/s"


def shape(dimensions: tuple[int, ...]) -> str:
    return " × ".join(map(str, dimensions)) if dimensions else "scalar"


def unbreakable(text: str) -> str:
    """`text` with no-break spaces where a line must not break, such as between a number and its unit."""
    return _TOGETHER.sub(NO_BREAK, text)


def width_of(text: str) -> int:
    """Number of terminal columns that the longest line of `text` takes."""
    if text.isascii() and "\n" not in text:
        return len(text)
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")))


def shortened_names(names: Sequence[str], width: int) -> list[str]:
    """`names`, of which those longer than `width` are shortened in the middle: `encoder…0.attention.self.key.weight`.
    They are shortened at the beginning instead if fewer of them look alike then."""
    every = [[shortened_word(name, width, keep) for name in names] for keep in ("begin", "end")]
    return max(every, key=lambda made: len({*made}))


def shortened_word(word: str, width: int, keep: Literal["begin", "end"] = "begin") -> str:
    """`word`, or its beginning and end if it takes more than `width` columns. Of a path or dotted name whole parts are
    left out, but the numbers of a name are kept, because they tell blocks of a model apart. keep: `begin` keeps the
    first part if possible; `end` rather leaves it out than keep only one part of the end, or none."""
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
    """The first `head` and the last `tail` of `parts`; in a dotted name also the numbers and stars between them."""
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
    """The beginning and end of a word. The beginning gets only a third of the room, because the end tells more."""
    begin = max((width - 1) // 3, 0)
    end = max(width - 1 - begin, 0)
    made = f"{word[:begin]}{_ELLIPSIS}{word[len(word) - end :]}"
    while width_of(made) > width and end > 0:  # if characters take two columns
        end -= 1
        made = f"{word[:begin]}{_ELLIPSIS}{word[len(word) - end :]}"
    return made


def folded(text: str, width: int) -> list[str]:
    """`text` wrapped to lines of at most `width` characters; numbers are not separated from their units. A longer word,
    such as a path, gets a line of its own and is not shortened, since a shortened path would be useless."""
    wrapped = textwrap.wrap(unbreakable(text), max(width, 1), break_long_words=False, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in wrapped] or [""]


def folded_command(words: Sequence[str], width: int | None, begin: str = "") -> list[str]:
    """`begin` and a command, quoted for a shell and folded to lines of at most `width` columns. All lines but the last
    end with a backslash, so that the shell reads them as one. width: None for any. An option and its value stay
    together; a longer word is not shortened."""
    line, lines = f"{begin}{words[0]}", list[str]()
    quoted = re.sub(r"(?<=\0)(--[\w-]+)\0", r"\1 ", "\0".join(map(shlex.quote, words)))
    for word in quoted.split("\0")[1:]:
        if width is not None and width_of(f"{line} {word} \\") > width:
            lines.append(f"{line} \\")
            line = f"   {word}"
        else:
            line = f"{line} {word}"
    return [*lines, line]


def terminal_width(out: TextIO) -> int:
    """Number of columns of the terminal `out`, from the variable COLUMNS or else from the terminal itself."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(out.fileno()).columns or _USUAL_WIDTH
    except (OSError, ValueError):  # ValueError: `out` has no file descriptor, or is closed
        return _USUAL_WIDTH
