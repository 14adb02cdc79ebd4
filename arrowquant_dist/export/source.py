"""`--source`: the checkpoint that layers are quantized anew from, which must be the one that the dataset was made from.

Names, shapes and dtypes are compared, and the first values of some layers: another model of the same architecture has
all the same names and shapes, and an export that mixes two models opens without errors. A dataset's values equal the
source's up to rounding, which leaves a correlation of 0.5 or more even with two bits; between the weights of two models
it is about 0. Differences smaller than the steps between codes, as in a fine-tuned model, are not detected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config import Storage
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint, listed
from arrowquant_dist.export.format import Model
from arrowquant_dist.export.tensors import LayerExport
from arrowquant_dist.export.worker import RequantizeSource
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.tensor.source import as_float32

_COMPARED_LAYERS = 32  # spread over all layers: few requests, whatever the model's size
_COMPARED_VALUES = 4096
_FEWEST_VALUES = 256  # needed for a meaningful correlation: chance gives about 0.06
_LEAST_SPREAD = 0.05  # least share of values unlike the median; below it there is nothing to compare
_LEAST_CORRELATION = 0.25


def requantize_source(
    model: Model, layers: Iterable[LayerExport], storage: Storage
) -> RequantizeSource | None:
    """Returns the source's layers that values are taken from; None without a source. Raises InvalidCheckpoint if they
    are not the dataset's."""
    if model.source is None:
        return None
    wanted = sorted({layer.layer for layer in layers if layer.spec is not None})
    found = _by_name(model.source)
    wrong = [name for name in wanted if not _is_same(found.get(name), model, name)]
    if wrong:
        raise _other(model.source, f"it has other layers than the dataset: {listed(wrong)}")
    source = RequantizeSource(model.source.files, {name: found[name] for name in wanted})
    compared = wanted[:: max(1, -(-len(wanted) // _COMPARED_LAYERS))]
    with SourceReader(storage, source.files) as reader:
        wrong = [name for name in compared if not _is_alike(model, reader, source.layers[name], name)]
    if wrong:
        raise _other(model.source, f"it has other values than the dataset: {listed(wrong)}")
    return source


def _by_name(source: Checkpoint) -> Mapping[str, Layer]:
    """Returns each layer under all its names: source and dataset may store different ones of two tied names."""
    layers = {layer.name: layer for layer in source.layers}
    return layers | {name: layers[stored] for name, stored in source.aliases.items()}


def _is_same(layer: Layer | None, model: Model, name: str) -> bool:
    stored = model.layers[name]
    return layer is not None and (layer.shape, layer.dtype) == (stored.shape, stored.dtype)


def _is_alike(model: Model, reader: SourceReader, layer: Layer, name: str) -> bool:
    """Returns whether the layer's first values are those that the dataset rounded, as far as can be told."""
    stored = model.layers[name]
    count = min(stored.num_params, _COMPARED_VALUES)
    if count < _FEWEST_VALUES or not DTYPES[stored.dtype].is_float:
        return True
    [ours, theirs] = [
        as_float32(values, stored.dtype).astype(np.float64)
        for values in (model.dataset.read_values(name, 0, count), reader.read([(layer, 0, count)])[0])
    ]
    if np.isnan(theirs).any() and not np.isnan(ours).any():
        return False  # NaN is never rounded to a code
    if not np.isfinite(theirs).all() or np.mean(ours != np.median(ours)) < _LEAST_SPREAD:
        return True
    return correlation(ours, theirs) >= _LEAST_CORRELATION


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Returns Pearson's correlation of two float64 arrays of the same length; 0 if either is constant."""
    one, other = one - one.mean(), other - other.mean()
    norms = float(np.sqrt(one @ one) * np.sqrt(other @ other))
    return float(one @ other) / norms if norms else 0.0


def _other(source: Checkpoint, problem: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(f"{problem}; use the source that was quantized", uri=redact(source.uri))
