"""Chooses and reads the layers of a dataset that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.config import BITS
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.distillation.codes import TrainedCodes
from arrowquant_dist.distillation.student import trainable
from arrowquant_dist.distillation.vectors import TrainedVector
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.loader.slots import DECODED_DTYPES
from arrowquant_dist.models.made import FilledModel
from arrowquant_dist.models.source import LayerSource, stored_names
from arrowquant_dist.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class TrainedLayers:
    """Trained layers by their stored names in the dataset."""

    matrices: Mapping[str, TrainedCodes]
    vectors: Mapping[str, TrainedVector]


def trained_layers(filled: FilledModel, dataset: Loads, original: LayerSource) -> TrainedLayers:
    """Matrices with codes, and float vectors, that are parameters of the model. Raises InvalidConfig where there are no
    matrices."""
    stored_as = stored_names(original)
    names = trainable(filled)
    matrices: dict[str, TrainedCodes] = {}
    vectors: dict[str, TrainedVector] = {}
    for name, layer in dataset.layers.items():
        if name not in names or layer.dtype not in DECODED_DTYPES:
            continue
        if layer.quant_type in BITS:
            region = Region.whole(original.layers[stored_as[name]])
            values = load_now(original.decoded(region, layer.dtype), original.budget)
            matrices[name] = TrainedCodes(read_codes(dataset, layer), values)
        elif len(layer.shape) == 1 and layer.num_params:
            values = load_now(dataset.decoded(Region.whole(layer), layer.dtype), dataset.budget)
            vectors[name] = TrainedVector(values)
    if not matrices:
        message = "the model has no layer whose codes could be trained; use a dataset with quantized layers"
        raise InvalidConfig(message, uri=dataset.uri)
    return TrainedLayers(matrices, vectors)


def read_codes(dataset: Loads, layer: StoredLayer) -> QuantizedTensor:
    """The codes of all row blocks of a layer. If the blocks share the layer's one scale, which then comes with
    each row, it is returned once."""
    found: QuantizedTensor = load_now(dataset.of_codes().one(Region.whole(layer)), dataset.budget)
    axis = layer.blocks[0].header.quant_axis
    if axis == found.quant_axis or np.unique(found.scales).size > 1 or np.unique(found.zero_points).size > 1:
        return found
    return replace(
        found, quant_axis=axis, scales=found.scales[:1].copy(), zero_points=found.zero_points[:1].copy()
    )


def refuse_mixed(layers: Mapping[str, StoredLayer], uri: str) -> None:
    """Raises InvalidConfig for a layer whose row blocks are stored in different ways, as with and without codes."""
    for name, layer in layers.items():
        types = {block.header.quant_type for block in layer.blocks}
        forms = {(block.header.quant_axis, block.header.group_size) for block in layer.blocks}
        if types & BITS.keys() and (len(types) > 1 or len(forms) > 1):
            message = (
                "its row blocks are stored in several ways; keep it when you quantize, and train the result"
            )
            raise InvalidConfig(message, layer=name, uri=uri)
