"""Keeps entropy-coded codes from taking more bytes after a training than before.

In a dataset by `--size` (symmetric codes in a wide type, a scale a row) stored bytes count, and the loss alone would
make codes larger, which costs it nothing. So the gradient of each latent code gets, besides the loss's, λ times what
its length would grow by; the length of a code is -log2 of how often the layer has it. λ is a multiple of the size of
the loss's own gradients. The multiple grows while the codes take more bits than at the beginning, and falls while they
take fewer, so training may move bits from where they help little to where they help more. A state that takes more than
the beginning by _TOLERANCE is never the best that was found.

While codes take as many bits as at the beginning, the multiple stays the same. A multiple that was to bring them a
thousandth below it kept growing as long as no code changed, as with those of a calibration, which begin at their
centres; in the end the codes followed nothing else: MiniLM's loss in 6.78 MB, .1302 at the beginning, was .1287 after
200 steps of 300, and .1326 after 275.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from arrowquant_dist.distillation.codes import TrainedCodes

_TOLERANCE = 0.002
_FIRST = 0.1  # multiple at the beginning, of the root mean square of the loss's gradients
_FEWEST, _MOST = 1e-3, 30.0
_GAIN = 60.0  # growth of the multiple's logarithm for each part of the bits that is too much
_EVERY = 5  # number of steps from one count of the codes to the next


class Rate:
    """Follows and bounds the bits of those of `matrices` that are entropy coded."""

    def __init__(self, matrices: Mapping[str, TrainedCodes]) -> None:
        self._layers = {name: codes for name, codes in matrices.items() if codes.form.is_entropy_coded}
        self._multiple = _FIRST
        self._slopes: dict[str, torch.Tensor] = {}
        self.first = self._follow()

    def bits(self) -> float:
        """Bits that the codes take now, by their entropy in each layer; 0 where none are entropy coded."""
        return sum((_bits(codes.counts()) for codes in self._layers.values()), 0.0)

    def fits(self) -> bool:
        """Whether the codes take no more than at the beginning. Counts all of them."""
        return self.bits() <= (1.0 + _TOLERANCE) * self.first

    def add_gradients(self) -> None:
        """Adds to the gradients of the codes, after the loss's gradients were computed."""
        size = self._size_of_gradients()
        for name, codes in self._layers.items():
            codes.add_gradient(self._slopes[name] * (self._multiple * size))

    def after(self, step: int) -> None:
        """Updates the multiple now and then. step: number of steps that were made."""
        if self._layers and step % _EVERY == 0:
            excess = self._follow() / self.first - 1.0
            self._multiple = min(max(self._multiple * math.exp(_GAIN * excess), _FEWEST), _MOST)

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, besides the codes."""
        multiple = torch.tensor(self._multiple, dtype=torch.float64)
        return {"multiple": multiple, **{f"slopes {name}": value for name, value in self._slopes.items()}}

    def put_state(self, found: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        self._multiple = float(found["multiple"])
        self._slopes = {name: found[f"slopes {name}"] for name in self._layers}

    def _follow(self) -> float:
        """Counts the codes and returns their bits; from then on gradients are computed from these counts."""
        total = 0.0
        for name, codes in self._layers.items():
            counts = codes.counts()
            total += _bits(counts)
            self._slopes[name] = _slopes(counts.double()).float()
        return total

    def _size_of_gradients(self) -> float:
        """Root mean square of the loss's gradients over values that have one: in layers that are looked up only some
        rows do."""
        squares = count = 0.0
        for codes in self._layers.values():
            values = codes.gradient
            if values is not None:
                squares += float(torch.linalg.vector_norm(values)) ** 2
                count += values.numel()
        return math.sqrt(squares / count) if count else 0.0


def _bits(counts: torch.Tensor) -> float:
    """Bits of the codes, from the number of occurrences of each, by their entropy."""
    found = counts.double()
    return -float((found * (found / found.sum()).clamp_min(1e-300).log2()).sum())


def _slopes(counts: torch.Tensor) -> torch.Tensor:
    """[codes]: by how many bits the length grows from a code to the next; one-sided at the ends. A code that does not
    occur counts as one that occurs once."""
    lengths = -((counts + 1.0) / (counts.sum() + len(counts))).log2()
    (found,) = torch.gradient(lengths)
    return found
