"""The result of a training, as bytes in a file that workers read by ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from arrowquant_dist.checkpoint.table import Checkpoint, Layer, as_listed
from arrowquant_dist.config import BITS, TRAINED, QuantSpec, ResolvedLayer, half_spec, kept_spec
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.distillation.layers import read_codes
from arrowquant_dist.distillation.student import TrainingResult
from arrowquant_dist.kernels.pack import pack_row, packed_nbytes
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.loader.tensors import bytes_of
from arrowquant_dist.models.original import AND_TRAINED
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.tensor import QuantizedTensor

_NAME = "trained.bin"


def stored_layers(
    dataset: Loads, found: TrainingResult, names: Mapping[str, str], reasons: Mapping[str, str], folder: Path
) -> tuple[dict[str, ResolvedLayer], Checkpoint]:
    """How each layer is stored, and a checkpoint in `folder` with the stored values of all layers that have codes or
    were trained, under the names of plan/trained.py.

    names: {layer's name in the source: its name in the dataset}. reasons: why layers are kept there.
    """
    resolved: dict[str, ResolvedLayer] = {}
    layers: list[Layer] = []
    path = folder / _NAME
    with path.open("wb") as file:
        for name, stored_as in names.items():
            layer = dataset.layers[stored_as]
            spec, reason, parts = _resolved(dataset, layer, found.get(stored_as, {}), reasons.get(stored_as))
            resolved[name] = ResolvedLayer(spec, reason)
            layers += _written(file, path, name, parts)
    store = open_store(str(folder))
    return resolved, Checkpoint(str(folder), "safetensors", tuple(layers), as_listed(store, store.list()))


def _written(
    file: BinaryIO, path: Path, name: str, parts: Mapping[str, tuple[str, np.ndarray]]
) -> Iterator[Layer]:
    for part, (dtype, values) in parts.items():
        offset = file.tell()
        file.write(b"\0" * (-offset % 8))
        offset = file.tell()
        file.write(np.ascontiguousarray(values).data)
        shape = values.shape
        yield Layer(f"{name}.{part}", shape, dtype, str(path), offset, values.nbytes)


def _resolved(
    dataset: Loads, layer: StoredLayer, found: Mapping[str, torch.Tensor], reason: str | None
) -> tuple[QuantSpec, str | None, dict[str, tuple[str, np.ndarray]]]:
    """The spec, the reason why the layer is kept, and {part: (dtype, [rows, …])}."""
    if layer.quant_type in BITS:
        stored = _with(read_codes(dataset, layer), found)
        return spec_of(stored), None, _parts(stored)
    if "values" in found:
        values = found["values"]
        shaped = bytes_of(values).view(f"V{values.element_size()}").reshape(layer.rows, layer.columns)
        spec = replace(kept_spec(layer.row_dims), method=TRAINED)
        why = (reason or "vector").removesuffix(AND_TRAINED) + AND_TRAINED
        return spec, why, {"values": (layer.dtype, shaped)}
    types = {block.header.quant_type for block in layer.blocks}
    spec = half_spec(layer.dtype, layer.row_dims) if "fp16" in types else kept_spec(layer.row_dims)
    return spec, reason or "as in the dataset that was trained", {}


def spec_of(stored: QuantizedTensor) -> QuantSpec:
    return QuantSpec(
        quant_type=stored.quant_type,
        per_channel=stored.quant_axis == 0 and not stored.group_size,
        group_size=stored.group_size,
        symmetric=not stored.zero_points.size,
        method=TRAINED,
        row_dims=stored.row_dims,
    )


def _with(stored: QuantizedTensor, found: Mapping[str, torch.Tensor]) -> QuantizedTensor:
    """The layer with its trained values, if it was trained."""
    if not found:
        return stored
    bits, codes = BITS[stored.quant_type], found["codes"].numpy().view(np.uint8)
    packed = codes if bits == 8 else np.empty((len(codes), packed_nbytes(codes.shape[1], bits)), np.uint8)
    for row, own in zip(codes, packed, strict=True) if bits < 8 else ():
        pack_row(row, bits, own)
    zeros = found["zero_points"].numpy() if "zero_points" in found else stored.zero_points
    return replace(stored, codes=packed.reshape(-1), scales=found["scales"].numpy(), zero_points=zeros)


def _parts(stored: QuantizedTensor) -> dict[str, tuple[str, np.ndarray]]:
    rows, _ = stored.matrix_shape
    scale_rows = 1 if stored.quant_axis < 0 else rows
    parts = {"scales": ("float32", stored.scales.reshape(scale_rows, -1))}
    if stored.zero_points.size:
        parts["zero_points"] = ("float32", stored.zero_points.reshape(scale_rows, -1))
    return {**parts, "codes": ("uint8", stored.codes.reshape(rows, -1))}
