"""Size and error of a layer at any step, interpolated from measurements at some steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.sizing.measure import Measured


@dataclass(frozen=True, slots=True)
class Curve:
    """A layer in steps of method `size` or `gptq`, in two containers.

    steps: ascending. narrow: measurements as int4 at the last of the steps, from the first one at which almost nothing
    is cut off. wide: measurements as int8 at the steps before, and at the first one of narrow. spec_at: gives the spec
    of a container and a step.
    """

    steps: tuple[float, ...]
    narrow: tuple[Measured, ...]
    wide: tuple[Measured, ...]
    spec_at: Callable[[str, float], QuantSpec]

    def at(self, step: float) -> Measured:
        """The layer at `step`, which is within `steps`; bytes are interpolated by logarithms.

        It is stored as int4 only where that cuts off almost nothing at the finer of the two neighbouring steps: a layer
        whose codes are cut off is worse than others of fewer bytes, whatever its squared error.
        """
        index = min(max(bisect_right(self.steps, step) - 1, 0), len(self.steps) - 2)
        narrow_from = len(self.steps) - len(self.narrow)
        is_narrow = index >= narrow_from
        container, known, first = ("int4", self.narrow, narrow_from) if is_narrow else ("int8", self.wide, 0)
        fine, coarse = known[index - first], known[index + 1 - first]
        share = math.log(step / self.steps[index]) / math.log(self.steps[index + 1] / self.steps[index])
        return _between(fine, coarse, share, self.spec_at(container, step))


def measured_curve(
    steps: Sequence[float],
    spec_at: Callable[[str, float], QuantSpec],
    measure: Callable[[QuantSpec], Measured],
) -> Curve:
    """Measures a layer at steps. steps: ascending, at least two."""
    narrow: list[Measured] = []
    for step in reversed(steps):
        found = measure(spec_at("int4", step))
        if found.cuts_off:
            break
        narrow.insert(0, found)
    cut = len(steps) - len(narrow)
    wide = [measure(spec_at("int8", step)) for step in steps[: min(cut + 1, len(steps))] if cut]
    return Curve(tuple(steps), tuple(narrow), tuple(wide), spec_at)


def _between(fine: Measured, coarse: Measured, share: float, spec: QuantSpec) -> Measured:
    def mixed(one: float, other: float) -> float:
        return math.exp((1.0 - share) * math.log(one) + share * math.log(other)) if one and other else one

    def each(ones: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
        return tuple(math.ceil(mixed(a, b)) for a, b in zip(ones, others, strict=True))

    return replace(
        fine,
        spec=spec,
        error=mixed(fine.error, coarse.error),
        outermost=fine.outermost,
        data_nbytes=each(fine.data_nbytes, coarse.data_nbytes),
        scales_nbytes=each(fine.scales_nbytes, coarse.scales_nbytes),
    )
