"""`--source`: the checkpoint that layers are quantized anew from, which has to be the one that the dataset is of.

Names, shapes and dtypes are compared, and of some layers the first values: another model of the same architecture has
all names and shapes, and an export that mixes two models opens like any other. A dataset's values are the source's to
within rounding, which even with two bits leaves a correlation of 0.5 and more; that of two models' weights is about 0.
What differs by less than codes are apart, a fine-tuned model, is not found.
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

_COMPARED_LAYERS = 32  # spread over all of them: few requests, whatever the model's size
_COMPARED_VALUES = 4096
_FEWEST_VALUES = 256  # of which a correlation says something: chance makes one of 0.06
_LEAST_SPREAD = 0.05  # of the values; where nearly all codes are the same one, there is nothing to compare
_LEAST_CORRELATION = 0.25


def requantize_source(
    model: Model, layers: Iterable[LayerExport], storage: Storage
) -> RequantizeSource | None:
    """The source's layers that values are taken from, None without a source. InvalidCheckpoint where they are not the
    dataset's."""
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
    """Each under all of its names: which of two tied ones is stored need not be the same."""
    layers = {layer.name: layer for layer in source.layers}
    return layers | {name: layers[stored] for name, stored in source.aliases.items()}


def _is_same(layer: Layer | None, model: Model, name: str) -> bool:
    stored = model.layers[name]
    return layer is not None and (layer.shape, layer.dtype) == (stored.shape, stored.dtype)


def _is_alike(model: Model, reader: SourceReader, layer: Layer, name: str) -> bool:
    """Whether the layer's first values are those that the dataset rounded, as far as that can be seen."""
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
    """Pearson's, of two float64 arrays of one length; 0 where either is constant."""
    one, other = one - one.mean(), other - other.mean()
    norms = float(np.sqrt(one @ one) * np.sqrt(other @ other))
    return float(one @ other) / norms if norms else 0.0


def _other(source: Checkpoint, problem: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(f"{problem}; give the one that was quantized", uri=redact(source.uri))
