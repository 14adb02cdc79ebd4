"""The best way to store each layer at a given price of a byte: one table for each price.

The price follows from the step of method `size`, whose rounding takes a bit to be worth RATE squares of a step
(kernels/steps.py). At a step, the layer's other ways, plain types with groups and 16 bits, are compared with it by
error + price · bytes. That is the Lagrangian of the choice: a table at a price is the best of all that take as many
bytes and have one step for all layers; by measurement, equal steps are best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import pairwise
from typing import TypeVar

from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.sizing.candidates import RATE, fine_specs, grouped_specs
from arrowquant_dist.sizing.measure import Measured, measure
from arrowquant_dist.sizing.sample import LayerSample

LEAST_STEP, MOST_STEP = 1e-3, 16.0
_FEW_VALUES = 1 << 13  # number of a layer's values on which its plain ways are first tried
_ANCHORS = (0.05, 0.2, 0.5, 1.0, 2.5)  # steps that they are compared with
# Multiples of the error that steps have at as many bytes. A type whose largest and smallest groups both exceed the
# first on few values is not looked at any further, and a way that exceeds the second is not measured on all values.
_MUCH_DOUBT, _DOUBT = 1.25, 1.1
# At a step s the whole error, s²/12, is worth .72 bits a value. int8 in groups takes at least 7 bits once compressed,
# so it can be worth its bytes only where steps take 6.3 or more.
_FINE_STEP = 0.06

T = TypeVar("T")
Ways = dict[str, Measured]  # by layer


class Frontier:
    """Tables of the layers whose way to be stored is to be chosen."""

    def __init__(self, samples: Sequence[LayerSample], threads: ThreadPoolExecutor) -> None:
        self.samples, self._threads = samples, threads
        self._plain: dict[str, list[Measured]] = self._each(_plain_ways)
        self._fine = self._none()
        self._cut: dict[str, float] = {}

    def at(self, step: float) -> Ways:
        """The best way of each layer at this step of method `size`."""

        if step < _FINE_STEP and not any(self._fine.values()):
            self._fine = self._each(_fine_ways)

        def best(sample: LayerSample) -> Measured:
            own = self._in_steps(sample, step)
            price = 8.0 * RATE * step * step
            return min(
                (own, *self._plain[sample.layer.name], *self._fine[sample.layer.name]),
                key=lambda way: sample.params * way.error + price * way.nbytes,
            )

        return self._each(best)

    def afresh(self) -> Frontier:
        """A copy for which no step has been tried. Plain ways below int8, which do not depend on steps, are kept."""
        found = copy(self)
        found._fine, found._cut = found._none(), {}
        return found

    def beside(self, table: Mapping[str, Measured], step: float) -> Ways:
        """`table` with another step for its layers in method `size`, in the same type. The others stay as they are, so
        that the size does not jump."""

        def again(sample: LayerSample) -> Measured:
            way = table[sample.layer.name]
            if not way.spec.step:
                return way
            return measure(sample, sample.spec_at(way.spec.quant_type, step), ZstdFrames())

        return self._each(again)

    def ways(self, *tables: Mapping[str, Measured]) -> dict[str, list[Measured]]:
        """The ways of each layer: those of the tables, then the plain ones that may be worth it."""
        names = [sample.layer.name for sample in self.samples]
        plain = {name: [*self._plain[name], *self._fine[name]] for name in names}
        return {name: [*(table[name] for table in tables), *plain[name]] for name in names}

    def _in_steps(self, sample: LayerSample, step: float) -> Measured:
        """The layer in its best container. Where int4 cuts codes off, it does so at all finer steps: it is not tried
        there again."""
        name = sample.layer.name
        is_cut = step <= self._cut.get(name, 0.0)
        found = best_container(sample, step, ("int8",) if is_cut else ("int4", "int8"))
        if found.spec.quant_type == "int8":
            self._cut[name] = max(step, self._cut.get(name, 0.0))
        return found

    def _none(self) -> dict[str, list[Measured]]:
        return {sample.layer.name: [] for sample in self.samples}

    def _each(self, how: Callable[[LayerSample], T]) -> dict[str, T]:
        found = self._threads.map(how, self.samples)
        return {sample.layer.name: one for sample, one in zip(self.samples, found, strict=True)}


def nbytes_of(table: Mapping[str, Measured]) -> int:
    return sum(one.nbytes for one in table.values())


def best_container(
    sample: LayerSample, step: float, containers: Collection[str] = ("int4", "int8")
) -> Measured:
    """The layer as int4, whose pairs of codes a byte compress closest to their entropy, while that cuts off almost
    nothing; else as int8.

    A layer whose codes are cut off is worse than others of fewer bytes, whatever its squared error.
    """
    frames = ZstdFrames()
    if "int4" in containers and step * sample.relative_step > _INT4_STEP:
        narrow = measure(sample, sample.spec_at("int4", step), frames)
        if not narrow.cuts_off:
            return narrow
    return measure(sample, sample.spec_at("int8", step), frames)


_INT4_STEP = 0.1  # below this, 7 steps are less than any row's root mean square, and so its largest value


def _plain_ways(sample: LayerSample) -> list[Measured]:
    """Ways below int8 that may beat steps at some size, judged by few values of the layer, measured on its sample."""
    few, frames = sample.fewer(_FEW_VALUES), ZstdFrames()
    curve = sorted((way.nbytes, way.error) for way in (best_container(few, step) for step in _ANCHORS))

    def excess(way: Measured) -> float:
        return way.error / max(_error_at(curve, way.nbytes), 1e-30)

    good = []
    for first, rest in grouped_specs(sample.blocks[0]).values():
        tried = [measure(few, spec, frames) for spec in first]
        if min(map(excess, tried)) <= _MUCH_DOUBT:
            tried += [measure(few, spec, frames) for spec in rest]
            good += [way.spec for way in tried if excess(way) <= _DOUBT]
    return [measure(sample, spec, frames) for spec in good]


def _fine_ways(sample: LayerSample) -> list[Measured]:
    frames = ZstdFrames()
    return [measure(sample, spec, frames) for spec in fine_specs(sample.blocks[0])]


def _error_at(curve: Sequence[tuple[int, float]], nbytes: int) -> float:
    """The error of method `size` at this number of bytes, by logarithms between two of its steps. At more bytes than
    the finest takes it is the finest's, at fewer than the coarsest takes infinite. curve: (bytes, error) of steps, by
    ascending bytes."""
    if nbytes < curve[0][0]:
        return math.inf
    for (few, high), (many, low) in pairwise(curve):
        if few <= nbytes < many:
            share = (nbytes - few) / (many - few)
            return math.exp((1 - share) * math.log(max(high, 1e-30)) + share * math.log(max(low, 1e-30)))
    return curve[-1][1]
