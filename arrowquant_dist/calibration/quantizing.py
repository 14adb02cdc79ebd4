"""A sequential calibration's quantized path: layers as `quantize` makes them, by the same functions and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.config import QuantizationConfig, QuantSpec, SpecResolver
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.methods import method_of
from arrowquant_dist.tensor import quantize_values

if TYPE_CHECKING:
    from arrowquant_dist.models.paths import Paths


class PathQuantizer:
    """specs: {stored name: how the layer is stored}, of those that the config quantizes."""

    def __init__(self, config: QuantizationConfig, layers: Mapping[str, StoredLayer]) -> None:
        resolver = SpecResolver(config, [*layers.values()])
        self.specs: dict[str, QuantSpec] = {}
        for layer in layers.values():
            spec = resolver.resolve(layer.name, layer.shape, layer.dtype).spec
            if spec.chooses_codes:
                self.specs[layer.name] = spec

    def quantized(
        self,
        paths: Paths,
        layer: str,
        statistics: Mapping[str, np.ndarray],  # noqa: ARG002 - no method makes use of them yet
    ) -> np.ndarray:
        """The layer's values, quantized and decoded: uint8, of the source's dtype. statistics: {part: float32}.

        Raises UnquantizableWeights.
        """
        stored, spec = paths.layers[layer], self.specs[layer]
        side_input = method_of(spec, layer).side_input
        if side_input is not None:
            spec = replace(spec, method="mse")
        values = paths.source_bytes(layer)
        found = quantize_values(values, stored.shape, stored.dtype, spec, layer=layer)
        return np.ascontiguousarray(found.values()).reshape(-1).view(np.uint8)
