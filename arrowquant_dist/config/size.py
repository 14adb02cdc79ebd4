"""The limit for the size of a dataset: bytes, or bits a weight."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.config.checks import invalid, shown
from arrowquant_dist.config.sizes import is_size, parse_size

_BITS = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*bits?", re.IGNORECASE)
_MOST_BITS = 64.0


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """Limit for all that a dataset has under `weights/`: part files with codes, scales, kept values, and Parquet's
    framing. One of the two fields is given.

    nbytes: maximum size in bytes.
    bits: maximum number of stored bits a weight, all included: 8 · bytes of the parts / values of all layers.
    """

    nbytes: int | None = None
    bits: float | None = None

    def nbytes_of(self, params: int) -> int:
        """The limit in bytes for a source of `params` values."""
        return self.nbytes if self.nbytes is not None else int((self.bits or 0.0) * params / 8)


def size_limit(value: Any, key: str = "size") -> SizeLimit:
    """The limit that "5.5MB", "2.0bits" or a number of bytes stands for. Raises InvalidConfig, which names `key`."""
    bits = _BITS.fullmatch(value.strip()) if isinstance(value, str) else None
    if bits is not None:
        number = float(bits[1])
        if not 0.0 < number <= _MOST_BITS:
            raise invalid(
                key, f"must be above 0 and at most {_MOST_BITS:g} bits a weight, not {shown(value)}"
            )
        return SizeLimit(bits=number)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not (is_number or (isinstance(value, str) and is_size(value))):
        raise invalid(key, f"must be a size such as 5.5MB or 2.0bits (a weight), not {shown(value)}")
    nbytes = parse_size(value, key)
    if nbytes == 0:
        raise invalid(key, "must be above 0")
    return SizeLimit(nbytes=nbytes)
