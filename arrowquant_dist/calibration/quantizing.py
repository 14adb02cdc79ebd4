"""The quantized path of a sequential calibration: layers as `quantize` makes them, by the same code and statistics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.calibration.arrays import ArrayFile
from arrowquant_dist.config import QuantizationConfig, QuantSpec, SpecResolver
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.methods import Given, method_of
from arrowquant_dist.tensor import quantize_values

if TYPE_CHECKING:
    from arrowquant_dist.models.paths import Paths


class WrittenParts:
    """A methods.PartReader for the statistics that were written for a layer. file: None where there are none."""

    def __init__(self, layer: str, file: ArrayFile | None) -> None:
        self._layer, self._file = layer, file
        names = () if file is None else file.shapes
        start = f"{layer}."
        found = [name.removeprefix(start) for name in names if name.startswith(start)]
        self.parts: Collection[str] = [part for part in found if "." not in part]

    def __call__(self, part: str, start: int, stop: int) -> np.ndarray:
        """See methods.PartReader."""
        if self._file is None:
            raise KeyError(part)
        return self._file.read_values(f"{self._layer}.{part}", start, stop)


class PathQuantizer:
    """Quantizes layers. specs: {stored name: spec} of the layers that the config quantizes."""

    def __init__(self, config: QuantizationConfig, layers: Mapping[str, StoredLayer]) -> None:
        resolver = SpecResolver(config, [*layers.values()])
        self.specs: dict[str, QuantSpec] = {}
        for layer in layers.values():
            spec = resolver.resolve(layer.name, layer.shape, layer.dtype).spec
            if spec.chooses_codes:
                self.specs[layer.name] = spec

    def work_nbytes(self, paths: Paths, layer: str, file: ArrayFile | None) -> int:
        """Upper bound of the memory that `quantized` takes, in bytes: the layer's values as read, in float32 and as
        returned, its codes, and its statistics in `file`."""
        stored, spec = paths.layers[layer], self.specs[layer]
        side_input = method_of(spec, layer).side_input
        found = 3 * paths.nbytes_of(layer) + 6 * stored.num_params
        if side_input is not None:
            parts = WrittenParts(layer, file).parts
            found += side_input.work_nbytes(stored.shape, spec.row_dims, stored.rows, parts)
        return found

    def quantized(self, paths: Paths, layer: str, file: ArrayFile | None) -> np.ndarray:
        """The layer's values, quantized and decoded: bytes of the source's dtype as uint8. file: with its statistics.

        A layer without the statistics that its method needs gets the method that `quantize` would then use. Raises
        UnquantizableWeights, InvalidCheckpoint.
        """
        stored, spec = paths.layers[layer], self.specs[layer]
        side_input, given = method_of(spec, layer).side_input, Given()
        if side_input is not None:
            read = WrittenParts(layer, file)
            if any(part in read.parts for part in side_input.needed(spec)):
                given = Given(side=side_input.prepare(layer, stored.shape, spec.row_dims, read))
            else:
                spec = side_input.instead(spec)
        values = paths.source_bytes(layer)
        found = quantize_values(values, stored.shape, stored.dtype, spec, given=given, layer=layer)
        return np.ascontiguousarray(found.values()).reshape(-1).view(np.uint8)
