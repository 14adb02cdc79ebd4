"""Inputs that are seen ahead of a sequential calibration: those of an output head that shares the embedding's weights.

The embedding runs first and is quantized before any block, since blocks make up for its errors; its other use comes
last. As an embedding, its rows are looked up, and all errors of a row count alike; as a head, it is a matrix that every
token is multiplied with, whose errors count by the Hessian of its inputs. For SmolLM2-135M, int4 by `mse` of this
matrix with all else kept costs 21 % of perplexity, 2.6 % as an embedding alone and 18.6 % as a head; gptq with this
Hessian costs 3.8, 2.5 and 1.6 %. So the texts go through the original once beforehand, for this one Hessian. The head's
inputs on the quantized path are nearly the same, and are not known before that path is.
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

_AHEAD = 998  # stands for a stage's number
_PATH = statistics_path(0, _AHEAD)


class Passing(Protocol):
    """Makes passes over the texts; implemented by parts.Parts."""

    paths: Paths
    place: CalibrationPlace

    def shares(self, part: int, order: Order, stage: int) -> Shares: ...

    def passes(
        self, part: int, stage: int, quantized: Sequence[str], shares: Shares
    ) -> Generator[Sequence[SliceJob], None, list[SliceJob]]: ...


@dataclass(frozen=True, slots=True)
class SeenAhead:
    """layers: names of the layers whose Hessian is in `file` before the first part begins."""

    layers: frozenset[str] = frozenset()
    file: ArrayFile | None = None

    def of(self, layer: str, file: ArrayFile | None) -> ArrayFile | None:
        """The file with the statistics of the layer. file: that of its stage."""
        return self.file if layer in self.layers else file

    def noted(self, layer: CalibratedLayer) -> CalibratedLayer:
        """The layer as the record has it, with the Hessian if it was seen ahead."""
        return replace(layer, parts=(*layer.parts, HESSIAN)) if layer.name in self.layers else layer


def look_ahead(
    parts: Passing, quantizer: PathQuantizer, enter: Callable[[int], None]
) -> Generator[Sequence[SliceJob], None, SeenAhead]:
    """Sends the texts through the original alone, one part at a time; does nothing where no layer uses the result."""
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
