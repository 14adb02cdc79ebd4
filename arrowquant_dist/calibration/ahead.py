"""What is seen ahead of a sequential calibration: the inputs of an output head whose weights are the embedding's.

The first thing that runs is the embedding, which is quantized before any block, as what these make up for; its other
use comes last. As an embedding its rows are looked up, and all errors of one are alike; as a head it is the matrix that
every token meets, whose errors count by the Hessian of its inputs. That of SmolLM2-135M, int4 by `mse` and all else
kept, costs 21 % of perplexity, 2.6 % as an embedding alone and 18.6 % as a head; by gptq with this Hessian 3.8, 2.5 and
1.6 %. So the texts go through the original once before, for this one Hessian. What the head is given on the quantized
path is nearly the same, and is not known before that is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from arrowquant_dist.calibration.arrays import ArrayFile, write_arrays
from arrowquant_dist.calibration.layout import AHEAD_FOLDER, statistics_path
from arrowquant_dist.calibration.quantizing import PathQuantizer
from arrowquant_dist.calibration.record import CalibratedLayer
from arrowquant_dist.calibration.reduce import SlicedSums, statistics_of
from arrowquant_dist.calibration.worker import AHEAD, SliceJob, order_of
from arrowquant_dist.methods import HESSIAN, method_of

if TYPE_CHECKING:
    from arrowquant_dist.calibration.memory import Shares
    from arrowquant_dist.calibration.place import CalibrationPlace
    from arrowquant_dist.models.paths import Paths
    from arrowquant_dist.models.sites import Order

_AHEAD = 998  # in the place of a stage's number
_PATH = statistics_path(0, _AHEAD)


class Passing(Protocol):
    """What makes passes over the texts: parts.Parts."""

    paths: Paths
    place: CalibrationPlace

    def shares(self, part: int, order: Order, stage: int) -> Shares: ...

    def passes(
        self, part: int, stage: int, quantized: Sequence[str], shares: Shares
    ) -> Generator[Sequence[SliceJob], None, list[SliceJob]]: ...


@dataclass(frozen=True, slots=True)
class SeenAhead:
    """layers: whose Hessian is in `file` before the first part begins."""

    layers: frozenset[str] = frozenset()
    file: ArrayFile | None = None

    def of(self, layer: str, file: ArrayFile | None) -> ArrayFile | None:
        """The file with what is known of the layer. file: of its stage."""
        return self.file if layer in self.layers else file

    def noted(self, layer: CalibratedLayer) -> CalibratedLayer:
        """As the record has it."""
        return replace(layer, parts=(*layer.parts, HESSIAN)) if layer.name in self.layers else layer


def look_ahead(
    parts: Passing, quantizer: PathQuantizer, enter: Callable[[int], None]
) -> Generator[Sequence[SliceJob], None, SeenAhead]:
    """Of the original alone, one part at a time. Nothing where no layer has a use for it."""
    paths, store = parts.paths, parts.place.store
    wanted = frozenset(name for name in paths.tied_heads if _is_by_statistics(quantizer, name))
    if not wanted:
        return SeenAhead()
    if not store.exists(_PATH):
        for part in range(paths.parts):
            enter(part)
            order = order_of(paths, store, part, AHEAD)
            jobs = yield from parts.passes(part, AHEAD, (), parts.shares(part, order, AHEAD))
        found = statistics_of(paths, order, SlicedSums(store, [job.written for job in jobs]))
        drafts = [draft for draft in found.drafts if _is_hessian_of(draft.name, wanted)]
        write_arrays(store, _PATH, drafts)
    parts.place.remove(AHEAD_FOLDER)
    return SeenAhead(wanted, ArrayFile(store, _PATH))


def _is_by_statistics(quantizer: PathQuantizer, name: str) -> bool:
    return name in quantizer.specs and method_of(quantizer.specs[name], name).side_input is not None


def _is_hessian_of(name: str, layers: frozenset[str]) -> bool:
    return name.endswith(f".{HESSIAN}") and name.removesuffix(f".{HESSIAN}") in layers
