"""Identifies a checkpoint's weights by a few values of each layer: few enough to be recorded beside what was made
from the checkpoint, and cheap to read again from any copy of it, with at most one request per layer.

Paths, file names, sizes and headers do not identify weights: another model of the same architecture has the same. Nor
does a hash of files: a copy in more or fewer files, or in 16 bits, is the same model. So values are compared. In two
copies of one dtype they are equal. With two dtypes, each value stands for all numbers that are rounded to it, and the
two sets must have one in common. A model that was trained further has other values where it was trained, and if all
layers are looked at, no part of a model can be trained unnoticed.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config import Storage
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint, listed

_VALUES = 16  # contiguous values per layer
_MOST_LAYERS = 512  # of models with more layers, so many are chosen evenly from the sorted names
_READERS = 16
# {dtype: (bits of the fraction, least exponent of a normal number)}
_PRECISION = {"float64": (52, -1022), "float32": (23, -126), "float16": (10, -14), "bfloat16": (7, -126)}
# In half distances between neighbours: a copy made by way of a third dtype was rounded twice.
_ROUNDED_TWICE = 1.25


@dataclass(frozen=True, slots=True)
class SampledLayer:
    """A sample of a layer. values: the bits of some values, little-endian; name and shape determine which ones."""

    shape: tuple[int, ...]
    dtype: str
    values: bytes

    def to_list(self) -> list[Any]:
        return [list(self.shape), self.dtype, self.values.hex()]

    @classmethod
    def from_list(cls, found: Any) -> SampledLayer:
        """The inverse of `to_list`. Raises ValueError or TypeError for anything else."""
        shape, dtype, values = found
        made = cls(tuple(int(size) for size in shape), str(dtype), bytes.fromhex(values))
        if made.dtype not in _PRECISION or len(made.values) % DTYPES[made.dtype].itemsize:
            raise ValueError(f"these are not values of {made.dtype}")
        return made

    def is_of_other_weights(self, other: SampledLayer) -> bool:
        """Whether the two samples cannot be from one layer, stored in the same dtype or in two."""
        if self.shape != other.shape:
            return True
        if self.dtype == other.dtype:
            return self.values != other.values
        ours, theirs = self._numbers(), other._numbers()
        if ours.shape != theirs.shape:
            return True
        room = _ROUNDED_TWICE * (_half_steps(ours, self.dtype) + _half_steps(theirs, other.dtype))
        is_same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        with np.errstate(invalid="ignore"):  # inf - inf
            return not bool((is_same | (np.abs(ours - theirs) <= room)).all())

    def _numbers(self) -> np.ndarray:
        bits = np.frombuffer(self.values, DTYPES[self.dtype].bits)
        if self.dtype == "bfloat16":
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(invalid="ignore"):  # a NaN that signals
            return bits.astype(np.float64)


def _half_steps(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Half the distance between neighbouring numbers in `dtype`; 0 for values that are not finite."""
    fraction, least = _PRECISION[dtype]
    with np.errstate(invalid="ignore"):
        _, exponent = np.frexp(numbers)  # numbers = m · 2^exponent, 1/2 <= m < 1
    found: np.ndarray = np.ldexp(0.5, np.maximum(exponent - 1, least) - fraction)
    return np.where(np.isfinite(numbers), found, 0.0)


@dataclass(frozen=True, slots=True)
class SampledWeights:
    """Samples of a checkpoint's layers. layers: {stored name: sample}."""

    layers: Mapping[str, SampledLayer]

    @classmethod
    def of(cls, checkpoint: Checkpoint, storage: Storage) -> SampledWeights:
        """Samples of a checkpoint that has been checked. Raises what reading raises."""
        layers = sorted((layer for layer in checkpoint.layers if _can_tell(layer)), key=lambda own: own.name)
        count = min(len(layers), _MOST_LAYERS)
        chosen = [layers[k * len(layers) // count] for k in range(count)]
        return cls(_read(checkpoint, storage, {layer.name: layer for layer in chosen}))

    @classmethod
    def from_dict(cls, found: Any, uri: str) -> SampledWeights:
        """The samples from their JSON form. Raises InvalidCheckpoint, with `uri`, if `found` is not that."""
        try:
            return cls({str(name): SampledLayer.from_list(sample) for name, sample in found.items()})
        except (ValueError, TypeError, AttributeError) as error:
            message = "its `weights` do not say which model they are of; run the command that makes it again"
            raise InvalidCheckpoint(message, uri=uri) from error

    def to_dict(self) -> dict[str, Any]:
        return {name: sample.to_list() for name, sample in self.layers.items()}

    def difference(self, checkpoint: Checkpoint, storage: Storage) -> str | None:
        """What shows that a checkpoint, which has been checked, has other weights than these; None if nothing does.

        Layers that only one of the two has are ignored, such as the pooler of a copy that was saved without it, as
        long as some layer is in both. Raises what reading raises.
        """
        names = {layer.name: layer for layer in checkpoint.layers if _can_tell(layer)}
        both = {name: names[stored] for name in self.layers if (stored := _stored(checkpoint, name)) in names}
        if self.layers and not both:
            return f"none of its layers ({listed(sorted(self.layers))}) is in the source"
        found = _read(checkpoint, storage, both)
        other = sorted(name for name, layer in found.items() if self.layers[name].is_of_other_weights(layer))
        return f"other values in {listed(other)}" if other else None


def _stored(checkpoint: Checkpoint, name: str) -> str:
    return checkpoint.aliases.get(name, name)


def _can_tell(layer: Layer) -> bool:
    return layer.dtype in _PRECISION and layer.num_params > 0


def _read(checkpoint: Checkpoint, storage: Storage, wanted: Mapping[str, Layer]) -> dict[str, SampledLayer]:
    """Reads samples. wanted: {name that decides the position: layer}."""
    by_object: defaultdict[str, list[str]] = defaultdict(list)
    for name, layer in wanted.items():
        by_object[layer.uri].append(name)
    found: dict[str, SampledLayer] = {}
    lock = threading.Lock()
    with (
        SourceReader(storage, checkpoint.files) as reader,
        ThreadPoolExecutor(min(_READERS, max(1, len(by_object)))) as pool,
    ):

        def read(of_object: Iterable[str]) -> None:
            slices = [(wanted[name], *_place(name, wanted[name])) for name in of_object]
            made = reader.read(slices)
            with lock:
                for name, values in zip(of_object, made, strict=True):
                    layer = wanted[name]
                    found[name] = SampledLayer(layer.shape, layer.dtype, values.tobytes())

        for _ in pool.map(read, by_object.values()):
            pass
        reader.confirm()
    return found


def _place(name: str, layer: Layer) -> tuple[int, int]:
    """Start and stop of the sample among the layer's values in C order; the position differs from name to name."""
    count = min(_VALUES, layer.num_params)
    start = xxhash.xxh3_64_intdigest(name.encode()) % (layer.num_params - count + 1)
    return start, start + count
