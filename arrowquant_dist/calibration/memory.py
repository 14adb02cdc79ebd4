"""How a memory budget is shared: weights of a part, which a process has once, and for each of its workers some texts
and some of the sums that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.errors import InvalidConfig

if TYPE_CHECKING:
    from arrowquant_dist.models.units import Unit

# For each worker: rows of a product before they are added, and buffers between it and the storage.
_BESIDE_NBYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Shares:
    """passes: the sums to make in each pass over the texts. at_once: number of workers of a process that have room."""

    passes: list[tuple[Unit, ...]]
    at_once: int


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """budget_nbytes: budget of one process. workers: number of workers that share it."""

    budget_nbytes: int
    workers: int

    def shares(self, weights_nbytes: int, batch_nbytes: int, units: Sequence[Unit], what: str) -> Shares:
        """As many workers as possible, and as few passes as these allow. what: name of the part, for errors.

        Raises InvalidConfig, with a budget that is enough, where one worker with one of the sums has no room.
        """
        from arrowquant_dist.models.units import passes_of

        largest = max((unit.nbytes for unit in units), default=0)
        beside = batch_nbytes + _BESIDE_NBYTES
        at_once = self.at_once(weights_nbytes, beside + largest, what)
        most = (self.budget_nbytes - weights_nbytes) // at_once - beside
        return Shares(passes_of(units, most), at_once)

    def at_once(self, weights_nbytes: int, each_nbytes: int, what: str) -> int:
        """Number of workers, each with `each_nbytes`, that have room beside the weights; at least one.

        Raises InvalidConfig as `shares` does.
        """
        needed = weights_nbytes + each_nbytes
        if needed > self.budget_nbytes:
            message = (
                f"{what} needs {rounded_size(needed)} of memory at once, but the budget is "
                f"{rounded_size(self.budget_nbytes)}; --memory-budget {_enough(needed)} is enough for it"
            )
            raise InvalidConfig(message)
        return min(self.workers, (self.budget_nbytes - weights_nbytes) // max(1, each_nbytes))


def _enough(nbytes: int) -> str:
    """A size for the command line, rounded up to MiB."""
    return f"{-(-nbytes // (1 << 20))}MiB"
