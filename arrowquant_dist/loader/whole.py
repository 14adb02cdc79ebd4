"""Loads of whole layers, several in one where the index says enough: as tensors, or into existing tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from arrowquant_dist.dataset.indexed import IndexedLayers
from arrowquant_dist.dataset.prefetch import Load
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dataset.whole import Decoded, WantedLayer, WholeLayers
from arrowquant_dist.loader.loads import Loads, with_copies
from arrowquant_dist.loader.memory import decodable_bytes, written_past_torch
from arrowquant_dist.loader.tensors import as_tensor

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Named = list[tuple[str, Any]]


class Destination(NamedTuple):
    """Where a layer goes. name: any of its names. tensor: the tensor to fill. dtype: the dtype to decode to. keys: the
    keys by which the caller knows the place."""

    name: str
    tensor: torch.Tensor
    dtype: str
    keys: list[str]


InPlace = tuple[list[str], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class WholeLoads:
    """Loads that always read layers whole."""

    loads: Loads

    def named(self, names: Iterable[str]) -> Iterator[Load[Iterator[Named]]]:
        """Loads pairs of name and tensor, or of name and QuantizedTensor if the loader gives codes. Adjacent names of
        one layer are read once."""
        loads, stored = self.loads, self._stored
        tied = [[*of] for _, of in groupby(names, stored)]

        def alone(run: slice) -> Iterator[Load[Iterator[Named]]]:
            layer = loads.opened.dataset.layer
            regions = {name: Region.whole(layer(name)) for of in tied[run] for name in of}
            return loads.batched(loads.named(regions))

        def given(run: slice, values: Iterator[Decoded]) -> Iterator[Named]:
            for of in tied[run]:
                array, dtype = next(values)
                yield with_copies(of, loads.allocate, as_tensor(array, dtype))

        if not loads.settings.dequantize:
            return alone(slice(None))
        dtype = loads.settings.dtype
        wanted = [WantedLayer(stored(of[0]), dtype, None, len(of) - 1) for of in tied]
        return self._together(wanted, alone, given)

    def into(self, places: Sequence[Destination]) -> Iterator[Load[Iterator[InPlace]]]:
        """Loads, for each place, its keys and its filled tensor; or a new tensor of the same shape where values cannot
        be decoded directly into the place's memory."""
        loads = self.loads

        def one(place: Destination) -> Load[InPlace]:
            region = Region.whole(loads.opened.dataset.layer(place.name))
            return loads.into(region, place.tensor, place.dtype).then(partial(_pair, place.keys))

        def alone(run: slice) -> Iterator[Load[Iterator[InPlace]]]:
            return loads.batched(map(one, places[run]))

        def given(run: slice, values: Iterator[Decoded]) -> Iterator[InPlace]:
            for place, memory in zip(places[run], memories[run], strict=True):
                array, dtype = next(values)
                if memory is None:
                    yield place.keys, as_tensor(array, dtype)
                else:
                    written_past_torch(place.tensor)
                    yield place.keys, place.tensor

        memories = [decodable_bytes(place.tensor, place.dtype) for place in places]
        wanted = [
            WantedLayer(self._stored(place.name), place.dtype, memory)
            for place, memory in zip(places, memories, strict=True)
        ]
        return self._together(wanted, alone, given)

    def _stored(self, name: str) -> str:
        return self.loads.opened.dataset.aliases.get(name, name)

    def _together(
        self,
        wanted: Sequence[WantedLayer],
        alone: Callable[[slice], Iterator[Load[Iterator[T]]]],
        given: Callable[[slice, Iterator[Decoded]], Iterator[T]],
    ) -> Iterator[Load[Iterator[T]]]:
        """Combines loads of `wanted`. alone: returns loads of a run of them, a layer at a time. given: makes the
        results of a combined load from the decoded values of its layers."""
        loads, layers = self.loads, self.loads.layers
        if not isinstance(layers, IndexedLayers):
            yield from alone(slice(None))
            return
        dataset, verify = loads.opened.dataset, loads.settings.verify
        makes = WholeLayers(dataset, layers, loads.share_nbytes, loads.allocate, verify=verify)
        done = 0
        for some, load in makes.batches(wanted):
            run = slice(done, done + len(some))
            done = run.stop
            if load is None:
                yield from alone(run)
            else:
                yield load.then(partial(given, run))


def _pair(keys: list[str], tensor: torch.Tensor) -> InPlace:
    return keys, tensor
