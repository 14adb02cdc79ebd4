"""Figures and names as people read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

MISSING = "–"
Form = Callable[[float | None], str]


class LayerName(str):
    """A name from a checkpoint: anything may be in it, so each output form quotes it in its own way."""

    __slots__ = ()


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
    if value < 60:
        return f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min {rest:02d} s" if hours else f"{minutes} min {rest:02d} s"


def rate(value: float | None, unit: str) -> str:
    """`value` a second: unit `B` for bytes, `params` for values."""
    if value is None:
        return MISSING
    return f"{nbytes(value)}/s" if unit == "B" else f"{params(value)} {unit}/s"


def shape(dimensions: tuple[int, ...]) -> str:
    return " × ".join(map(str, dimensions)) if dimensions else "scalar"
