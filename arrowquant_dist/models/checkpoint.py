"""Fills a model from a checkpoint: with its own weights, read by ranges from where they are stored.

This works as for a dataset (`build.py`, `fill.py`): no file of the checkpoint is copied and no layer is in memory
twice. Everything that `quantize` reads can be read this way, including pickles and the codes of quantized models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config import Storage
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Budget, Lane, Load, load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.loader.opened import REMOTE_WORKERS
from arrowquant_dist.loader.tensors import as_tensor
from arrowquant_dist.location import Location
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.plan.unscaled import check_unscaled
from arrowquant_dist.storage.uris import is_local

_PIECE_NBYTES = 32 << 20  # of a layer read into a tensor: the rest of the budget is left to others


@dataclass(frozen=True, slots=True)
class CheckpointLoads:
    """A LayerSource (source.py) of a checkpoint. Only whole rows of a layer, runs of its first dimension, are read."""

    checkpoint: Checkpoint
    layers: dict[str, StoredLayer]
    names: dict[str, Sequence[str]]
    budget: Budget
    workers: int
    reader: SourceReader
    stored: dict[str, Layer]

    @property
    def uri(self) -> str:
        return self.checkpoint.uri

    def differ(self, first: StoredLayer, second: StoredLayer) -> bool:
        step = self._piece(first)
        for start in range(0, first.num_params, step):
            stop = min(start + step, first.num_params)
            one, other = (
                load_now(self._values(layer, start, stop), self.budget) for layer in (first, second)
            )
            if not np.array_equal(one, other):
                return True
        return False

    def decoded(self, region: Region, dtype: str) -> Load[torch.Tensor]:
        layer = region.layer
        start, stop = _span(region)

        def shaped(values: np.ndarray) -> torch.Tensor:
            bits = values.view(np.dtype(DTYPES[layer.dtype].bits)).reshape(region.shape)
            return as_tensor(bits, layer.dtype).to(getattr(torch, dtype))

        return self._values(layer, start, stop).then(shaped)

    def into(self, region: Region, tensor: torch.Tensor, dtype: str) -> Load[torch.Tensor]:  # noqa: ARG002 - as the protocol has it
        """Loads values piece by piece, so that even a layer larger than the budget gets its values. dtype: the layer's
        own; the tensor may have another one, to which values are cast."""
        layer = region.layer
        first, last = _span(region)
        step = self._piece(layer)
        edges = [*range(first, last, step), last]
        flat = tensor.detach().view(-1)
        loads = [self._values(layer, *edge) for edge in pairwise(edges)]

        def fill() -> None:
            for load, start in zip(loads, edges, strict=False):
                lanes, result = load.begin()
                for lane in lanes:
                    lane()
                bits = result().view(np.dtype(DTYPES[layer.dtype].bits))
                flat[start - first : start - first + bits.size].copy_(as_tensor(bits, layer.dtype))

        def begin() -> tuple[Sequence[Lane], Callable[[], torch.Tensor]]:
            return [fill], lambda: tensor

        peak = max((load.peak_nbytes for load in loads), default=0)
        return Load(layer.name, peak, 0, begin)

    def _piece(self, layer: StoredLayer) -> int:
        """Returns the number of values read at a time."""
        return max(1, min(_PIECE_NBYTES, self.budget.limit_nbytes // 8) // DTYPES[layer.dtype].itemsize)

    def _values(self, layer: StoredLayer, start: int, stop: int) -> Load[np.ndarray]:
        """Loads values [start, stop), in C order, as bytes."""
        own = self.stored[layer.name]
        made = own.encoding.slice(own, start, stop)
        nbytes = (stop - start) * DTYPES[layer.dtype].itemsize
        read_nbytes = sum(piece.stop - piece.start for piece in made.ranges)

        def begin() -> tuple[Sequence[Lane], Callable[[], np.ndarray]]:
            found: list[np.ndarray] = []

            def read() -> None:
                found.extend(self.reader.read([(own, start, stop)]))

            return [read], lambda: found[0]

        peak = max(read_nbytes + made.decoded_nbytes + made.beside_nbytes, nbytes)
        return Load(layer.name, peak, nbytes, begin)


def _span(region: Region) -> tuple[int, int]:
    """Returns the range of the values in C order. The region has whole rows in one run; models need no others."""
    [rows] = region.runs
    columns = region.layer.columns
    return rows.start * columns, rows.stop * columns


@contextmanager
def checkpoint_loads(
    uri: Location, storage: Storage, memory_nbytes: int, unscaled: Sequence[str] = ()
) -> Iterator[CheckpointLoads]:
    """Opens the layers of the checkpoint at `uri`, which open_checkpoint accepts.

    memory_nbytes: the most bytes in flight. unscaled: patterns of float8 layers whose numbers are the weights
    themselves, as unscaled_float8 in a config. Raises what `open_checkpoint` and a plan raise, and SourceChanged at the
    end if a file has changed since its headers were read.
    """
    checkpoint = open_checkpoint(uri, storage)
    check_unscaled(checkpoint, unscaled if checkpoint.unscaled else ())
    sizes = {file.uri: file.nbytes for file in checkpoint.files}
    for layer in checkpoint.layers:
        layer.encoding.check(layer, sizes)
    names: dict[str, Sequence[str]] = {layer.name: [layer.name] for layer in checkpoint.layers}
    for alias, stored in checkpoint.aliases.items():
        names[stored] = [*names[stored], alias]
    layers = {
        layer.name: StoredLayer(layer.name, layer.shape, layer.dtype, 1, ()) for layer in checkpoint.layers
    }
    workers = usable_cpus() if is_local(checkpoint.uri) else REMOTE_WORKERS
    with SourceReader(storage, checkpoint.files) as reader:
        own = {layer.name: layer for layer in checkpoint.layers}
        yield CheckpointLoads(checkpoint, layers, names, Budget(memory_nbytes), workers, reader, own)
        reader.confirm()
