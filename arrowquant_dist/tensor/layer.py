"""Quantizes a whole layer in memory with its side input (statistics), as a worker does, but without a plan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.methods import NOTHING, Given, method_of
from arrowquant_dist.tensor.quantize import quantize_values
from arrowquant_dist.tensor.quantized import QuantizedTensor


def quantize_layer(
    values: np.ndarray,
    shape: tuple[int, ...],
    dtype: str,
    spec: QuantSpec,
    tensors: Mapping[str, np.ndarray],
    layer: str = "",
) -> QuantizedTensor:
    """Quantizes one layer with the statistics that its method needs.

    values, shape, dtype, spec: as for quantize_values. tensors: {part: float32 array of the SideInput's shape}, not
    modified; {} for a method that needs none. layer: name of the layer, for errors.

    The codes and scales are those that a worker makes from the same layer and statistics, however the layer is cut into
    row blocks. Raises what quantize_values raises, and InvalidConfig if a part is missing or has another shape.
    """
    side_input = method_of(spec, layer or None).side_input if spec.chooses_codes else None
    if side_input is None:
        return quantize_values(values, shape, dtype, spec, layer=layer or None)
    shapes = side_input.shapes(shape, spec.row_dims)
    needed = side_input.needed(spec)
    lacking = () if any(part in tensors for part in needed) else needed[:1]
    for part in (*tensors, *lacking):
        found = (tensors[part].shape, str(tensors[part].dtype)) if part in tensors else "missing"
        if found != (shapes.get(part), "float32"):
            wanted = (
                f"float32 of {list(shapes[part])}" if part in shapes else "only parts that this method uses"
            )
            raise InvalidConfig(f"{part} is {found}; pass {wanted}", layer=layer or None)
    prepared = side_input.prepare(layer, shape, spec.row_dims, _Parts(tensors))
    given = Given(side=prepared) if prepared is not None else NOTHING
    return quantize_values(values, shape, dtype, spec, given=given, layer=layer or None)


class _Parts:
    """A methods.PartReader over arrays in memory."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.parts = tensors

    def __call__(self, part: str, start: int, stop: int) -> np.ndarray:
        """See methods.PartReader."""
        return self.parts[part].reshape(-1)[start:stop].copy()
