"""The quality that a dataset must have: a cosine, or the growth of perplexity that it may have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.config.checks import invalid, shown

_NUMBER = re.compile(r"0?\.[0-9]{1,12}")
_PERCENT = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,9})?)\s*%")
_HOW = "a cosine between 0 and 1, such as 0.98, or how much the perplexity may grow, such as 5%"


@dataclass(frozen=True, slots=True)
class Quality:
    """A required quality; one of the two fields is given.

    cosine: lowest cosine. Without texts it is the mean over quantized layers of the cosine between decoded and original
    weights, as in reports; with texts the mean cosine of their embeddings, as `evaluate` computes it.
    excess: highest growth of the perplexity of texts over the original's, as a fraction of the original's; for causal
    models.
    """

    cosine: float | None = None
    excess: float | None = None


def quality(value: Any, key: str = "min_quality") -> Quality:
    """The quality that 0.98 or "5%" asks for. Raises InvalidConfig, which names `key`."""
    text = value.strip() if isinstance(value, str) else None
    percent = _PERCENT.fullmatch(text) if text is not None else None
    if percent is not None:
        excess = float(percent[1]) / 100
        if excess == 0.0:
            raise invalid(key, "must be above 0%: quantizing always loses something")
        return Quality(excess=excess)
    is_number = isinstance(value, float) or (text is not None and _NUMBER.fullmatch(text) is not None)
    if not is_number or not 0.0 < float(value) < 1.0:
        raise invalid(key, f"must be {_HOW}, not {shown(value)}")
    return Quality(cosine=float(value))
