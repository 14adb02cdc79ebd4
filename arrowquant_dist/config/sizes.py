"""Sizes as people write them: "64MiB", "2GB", or a number of bytes."""

from __future__ import annotations

import re

from arrowquant_dist.config.checks import invalid, shown

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_NAMES = {1: "bytes", KIB: "KiB", MIB: "MiB", GIB: "GiB", TIB: "TiB"}
_UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{prefix}ib": 1 << 10 * (power + 1) for power, prefix in enumerate("kmgt")},
    **{f"{prefix}b": 1000 ** (power + 1) for power, prefix in enumerate("kmgt")},
}


def parse_size(text: str | int, key: str = "size") -> int:
    """The number of bytes that 1048576, "64MiB", "2GB" (powers of 1000) or "1.5 GiB" stands for. Raises InvalidConfig,
    which names `key`."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise invalid(key, f"must not be negative, and is {shown(text)}")
        return text
    match = _match(text) if isinstance(text, str) else None
    if match is None:
        raise invalid(key, f"must be a size such as 64MiB, 2GB or a number of bytes, not {shown(text)}")
    whole, _, fraction = match[1].partition(".")
    unit = _UNITS[match[2]]
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def is_size(text: str) -> bool:
    """Whether `parse_size` accepts `text`."""
    return _match(text) is not None


def _match(text: str) -> re.Match[str] | None:
    """A match of number and unit; None where `text` is not a size."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([a-z]*)", text.strip().lower())
    return match if match is not None and match[2] in _UNITS else None


def checked_size(key: str, text: str | int, lowest: int, highest: int) -> int:
    """The bytes of `text`. Raises InvalidConfig, which names `key` and the limits, where they are out of range."""
    nbytes = parse_size(text, key)
    if not lowest <= nbytes <= highest:
        raise invalid(key, f"must be from {_size_text(lowest)} to {_size_text(highest)}, not {shown(text)}")
    return nbytes


def rounded_size(nbytes: int) -> str:
    """A size for people, with three or four digits: "64 MiB", "1.21 GiB", "12 bytes". Rounded up, so that a size above
    a limit never looks as if it were within it."""
    unit = max((unit for unit in (1, KIB, MIB, GIB, TIB) if nbytes >= unit), default=1)
    steps = 1 if nbytes >= 100 * unit else 10 if nbytes >= 10 * unit else 100
    number = -(-nbytes * steps // unit)
    text = f"{number / steps:.2f}".rstrip("0").rstrip(".")
    return f"{text} {'byte' if nbytes == 1 else _NAMES[unit]}"


def _size_text(nbytes: int) -> str:
    unit = max((unit for unit in (KIB, MIB, GIB, TIB) if nbytes % unit == 0), default=1)
    return f"{nbytes // unit} {_NAMES[unit]}"
