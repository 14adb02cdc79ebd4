"""Checks by weights that a dataset was made from the model that it is trained after, or compared with.

Layers stored byte for byte or in 16 bits have to equal the model's. For quantized layers, the distance from the model's
weights has to be the error in the dataset's report, which holds only for the weights that the dataset was made from: a
model that was trained further has another distance. This reads all of both once more.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow.parquet as pq
import torch

from arrowquant_dist.checkpoint.sampled import SampledLayer
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.errors import CorruptWeights, ModelMismatch, listed
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.loader.slots import DECODED_DTYPES
from arrowquant_dist.loader.tensors import bytes_of
from arrowquant_dist.models.checkpoint import CheckpointLoads
from arrowquant_dist.models.source import LayerSource, stored_names
from arrowquant_dist.target.manifest import Manifest, hash_of

AND_TRAINED = ", trained"  # follows the reason why a layer is kept, in a dataset that was trained
_LAYERS_PATH = "report/layers.parquet"
_KEPT = ({"none"}, {"fp16"})
# Tolerance for sums in float32 within a row and float64 beyond; and for a copy in another dtype, relative to the
# weights.
_OF_ERROR, _OF_WEIGHTS = 1e-4, 2.0**-8


def refuse_other_original(
    original: CheckpointLoads, stored: Loads, manifest: Manifest, trained: Iterable[str]
) -> None:
    """Raises ModelMismatch where `difference_from_original` finds a difference."""
    difference = difference_from_original(original, stored, manifest, trained)
    if difference is not None:
        said = f"it was not made from the weights of {original.uri} ({difference})"
        message = f"{said}; use the model that it was made from"
        raise ModelMismatch(message, uri=stored.uri)


def difference_from_original(
    original: CheckpointLoads, stored: Loads, manifest: Manifest, trained: Iterable[str]
) -> str | None:
    """Returns evidence that the dataset was made from other weights, with layers' names, or None if there is none.

    original: has the dataset's names and shapes. manifest: the dataset's. trained: layers that are kept with values
    other than the original's. Raises what reading raises.
    """
    found = _other_kept(original, stored, {*trained}) or _other_quantized(original, stored, manifest)
    return f"other values in {listed(sorted(found))}" if found else None


def trained_names(reasons: Mapping[str, str]) -> frozenset[str]:
    """Returns the layers kept with values other than the original's. reasons: {layer: reason why it is kept}."""
    return frozenset(name for name, reason in reasons.items() if reason.endswith(AND_TRAINED))


def _other_kept(original: CheckpointLoads, stored: Loads, trained: set[str]) -> list[str]:
    names = stored_names(original)
    kept = [name for name, layer in stored.layers.items() if name not in trained and _is_kept(layer)]
    return [
        name
        for name in kept
        if original.layers[names[name]].dtype in DECODED_DTYPES
        and _sample(original, original.layers[names[name]]).is_of_other_weights(
            _sample(stored, stored.layers[name])
        )
    ]


def _is_kept(layer: StoredLayer) -> bool:
    return layer.dtype in DECODED_DTYPES and {block.header.quant_type for block in layer.blocks} in _KEPT


def _sample(source: LayerSource, layer: StoredLayer) -> SampledLayer:
    """Returns all of a layer's values; for layers stored in 16 bits, in the form in which they are stored."""
    values = load_now(source.decoded(Region.whole(layer), layer.dtype), source.budget)
    if any(block.header.quant_type == "fp16" for block in layer.blocks):
        return SampledLayer(layer.shape, "float16", bytes_of(values.half()).tobytes())
    return SampledLayer(layer.shape, layer.dtype, bytes_of(values).tobytes())


def _other_quantized(original: CheckpointLoads, stored: Loads, manifest: Manifest) -> list[str]:
    names, found = stored_names(original), []
    for name, mse in _recorded(stored, manifest).items():
        layer, own = stored.layers[name], original.layers[names[name]]
        error, size = _distance(original, stored, names[name], name)
        said = np.sqrt(mse)
        room = _OF_ERROR * said + (0.0 if own.dtype == layer.dtype else _OF_WEIGHTS * size)
        if not abs(error - said) <= room:
            found.append(name)
    return found


def _recorded(stored: Loads, manifest: Manifest) -> Mapping[str, float]:
    """Returns {quantized layer: its mean squared error}; empty if the dataset was made without a report. Raises
    CorruptWeights, NotFound."""
    file = next((file for file in manifest.report if file.path == _LAYERS_PATH), None)
    if file is None:
        return {}
    store = stored.opened.dataset.store
    data = store.read(_LAYERS_PATH)
    if hash_of(data) != file.hash:
        message = "it is not what the manifest lists; quantize with --repair"
        raise CorruptWeights(message, uri=store.url(_LAYERS_PATH))
    rows = pq.read_table(io.BytesIO(data), columns=["layer_name", "dtype", "kept_reason", "mse"]).to_pylist()
    return {
        row["layer_name"]: row["mse"]
        for row in rows
        if row["kept_reason"] is None and row["mse"] is not None and row["dtype"] in DECODED_DTYPES
    }


def _distance(original: CheckpointLoads, stored: Loads, own: str, name: str) -> tuple[float, float]:
    """Returns the root mean squares of the error and of the weights, computed some rows at a time."""
    one, other = original.layers[own], stored.layers[name]
    rows, columns = other.shape[0], other.num_params // other.shape[0]
    step = max(1, min(original.budget.limit_nbytes, stored.budget.limit_nbytes) // (64 * max(1, columns)))
    errors = weights = 0.0
    for start in range(0, rows, step):
        spans = {0: range(start, min(start + step, rows))}
        w = load_now(original.decoded(Region.cut(one, spans), one.dtype), original.budget).double()
        d = load_now(stored.decoded(Region.cut(other, spans), "float32"), stored.budget).double()
        errors += float(torch.sum((w - d) ** 2))
        weights += float(torch.sum(w**2))
    return float(np.sqrt(errors / other.num_params)), float(np.sqrt(weights / other.num_params))
