"""A V1 or V2 dataset as a source, to quantize it anew. Names and shapes now, values on demand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from arrowquant_dist.checkpoint.sidecars import choose_sidecars, sidecar_files
from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.dataset import DATASET_ROWS
from arrowquant_dist.errors import CorruptWeights, IncompleteDataset, InvalidCheckpoint
from arrowquant_dist.storage.base import ObjectInfo, Store

if TYPE_CHECKING:
    from arrowquant_dist.dataset.layers import StoredLayer


def open_dataset(store: Store) -> Checkpoint:
    """The layers of a target, a Parquet file or a folder of them; no `data` is read.

    Raises InvalidCheckpoint where files, rows or shapes contradict each other or some are missing.
    """
    from arrowquant_dist.dataset.dataset import Dataset

    listing = store.list()
    weights = [info for info in listing if _holds_weights(info)]
    store.settle(weights)
    for info in weights:
        store.pin(info)
    try:
        dataset = Dataset.of(store)
        store.confirm()
    except (CorruptWeights, IncompleteDataset) as error:
        raise InvalidCheckpoint(
            error.message, layer=error.layer, uri=error.uri, byte_range=error.byte_range
        ) from error
    if not dataset.layers:
        raise InvalidCheckpoint("the dataset has no layers; choose another source", uri=store.uri)
    layers = [_layer(name, entry, store.uri) for name, entry in dataset.layers.items()]
    sidecars = choose_sidecars(listing)
    return Checkpoint(
        store.uri,
        f"v{dataset.schema_version}",
        tuple(layers),
        tuple(SourceFile(store.url(i.path), i.nbytes, i.version) for i in weights),
        dict(dataset.aliases),
        sidecars,
        largest_row_nbytes=dataset.largest_row_nbytes,
        sidecar_files=sidecar_files(store, sidecars, listing),
    )


def _layer(name: str, stored: StoredLayer, uri: str) -> Layer:
    shape = tuple(stored.shape)
    nbytes = math.prod(shape) * DTYPES[stored.dtype].itemsize
    return Layer(name, shape, stored.dtype, uri, 0, nbytes, DATASET_ROWS)


def _holds_weights(info: ObjectInfo) -> bool:
    """A part, the index or the manifest; also the object at the root, whose path is empty."""
    folder = info.path.split("/", 1)[0]
    return info.path in ("", "manifest.json") or (info.path.endswith(".parquet") and folder != "report")
