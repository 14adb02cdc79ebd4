"""How far a decoded weight is from the original, as sums that add up over blocks, layers and shards."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ErrorSums:
    """Sums over `count` values w and their decoded values d: Σw², Σd², Σ(w-d)², max|w-d|.

    Sums of disjoint blocks combine with `+`; every figure is derived from them. nan, inf, minus_inf: number of values
    of each kind that are not finite. Only kept layers have them; they are stored as they are, and count as 0 in the
    sums.
    """

    count: int = 0
    sum_w2: float = 0.0
    sum_d2: float = 0.0
    sum_e2: float = 0.0
    max_error: float = 0.0
    nan: int = 0
    inf: int = 0
    minus_inf: int = 0

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(
            self.count + other.count,
            self.sum_w2 + other.sum_w2,
            self.sum_d2 + other.sum_d2,
            self.sum_e2 + other.sum_e2,
            max(self.max_error, other.max_error),
            self.nan + other.nan,
            self.inf + other.inf,
            self.minus_inf + other.minus_inf,
        )

    @property
    def non_finite(self) -> str:
        """Number of values that are not finite, by kind, such as `3 NaN, 1 -inf`; empty where all values are finite."""
        counts = ((self.nan, "NaN"), (self.inf, "inf"), (self.minus_inf, "-inf"))
        return ", ".join(f"{count} {kind}" for count, kind in counts if count)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between w and d; 1 where both are zero, 0 where one is, NaN where a sum is not finite.

        Σwd is computed as (Σw² + Σd² - Σe²) / 2, which keeps the digits of 1 - cosine where d is close to w.
        """
        if self.sum_w2 == 0.0 or self.sum_d2 == 0.0:
            return 1.0 if self.sum_w2 == self.sum_d2 else 0.0
        dot = (self.sum_w2 + self.sum_d2 - self.sum_e2) / 2
        cosine = dot / (math.sqrt(self.sum_w2) * math.sqrt(self.sum_d2))
        return cosine if math.isnan(cosine) else max(-1.0, min(1.0, cosine))

    @property
    def precision_loss(self) -> float:
        return 1.0 - self.cosine

    @property
    def mse(self) -> float:
        return self.sum_e2 / self.count if self.count else 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 10·log10(Σw² / Σe²) dB; inf where nothing was lost."""
        if self.sum_e2 == 0.0:
            return math.inf
        return 10.0 * math.log10(self.sum_w2 / self.sum_e2) if self.sum_w2 > 0.0 else -math.inf

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ErrorSums:
        return cls(**values)
