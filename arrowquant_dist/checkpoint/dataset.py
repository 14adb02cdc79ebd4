"""A V1 or V2 dataset as a source, to quantize it again. Names and shapes are read now, values when needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from arrowquant_dist.checkpoint.table import Checkpoint, Layer, as_listed
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.dataset import DATASET_ROWS, as_a_source
from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint, counted
from arrowquant_dist.folder.components import named_components
from arrowquant_dist.folder.listing import SourceFolder, is_hidden
from arrowquant_dist.folder.sidecars import Sidecars, choose_sidecars
from arrowquant_dist.storage.base import ObjectInfo, Store

if TYPE_CHECKING:
    from arrowquant_dist.dataset.dataset import Dataset
    from arrowquant_dist.dataset.layers import StoredLayer


def open_dataset(store: Store, folder: SourceFolder | None) -> Checkpoint:
    """The layers of a target, a Parquet file or a folder of such files; no `data` is read. folder: None for a file.

    Raises InvalidCheckpoint if files, rows or shapes contradict each other or some are missing.
    """
    from arrowquant_dist.dataset.dataset import Dataset

    weights = [info for info in store.list() if _holds_weights(info)]
    if folder is not None:
        for path in [
            *(info.path for info in weights),
            *(path for path in folder.folders() if _is_read(path)),
        ]:
            folder.check(path)
    store.settle(weights)
    for info in weights:
        store.pin(info)
    with as_a_source():
        dataset = Dataset.of(store)
        store.confirm()
        _check_sizes(dataset, weights, store)
    if not dataset.layers:
        raise InvalidCheckpoint("the dataset has no layers; choose another source", uri=store.uri)
    layers = [_layer(name, entry, store.uri) for name, entry in dataset.layers.items()]
    sidecars = _sidecars(folder) if folder is not None else Sidecars(())
    return Checkpoint(
        store.uri,
        f"v{dataset.schema_version}",
        tuple(layers),
        as_listed(store, weights),
        dict(dataset.aliases),
        sidecars.paths,
        notes=sidecars.notes,
        largest_row_nbytes=dataset.largest_row_nbytes,
        sidecar_files=as_listed(store, sidecars.files),
        dataset=dataset,
    )


def _check_sizes(dataset: Dataset, weights: Sequence[ObjectInfo], store: Store) -> None:
    """Raises CorruptWeights if a part's size differs from the manifest: reading would notice only after much work."""
    sizes = {info.path: info.nbytes for info in weights}
    for part in dataset.manifest.parts if dataset.manifest is not None else ():
        found = sizes.get(part.path, part.nbytes)  # a part that is not listed may be behind a link
        if found != part.nbytes:
            message = f"it has {counted(found, 'byte')}, the manifest says {part.nbytes}; fetch it again"
            raise CorruptWeights(message, uri=store.url(part.path))


def _sidecars(folder: SourceFolder) -> Sidecars:
    return choose_sidecars(folder, [component.path for component in named_components(folder)])


def _is_read(folder: str) -> bool:
    """Whether this folder of a dataset can hold parts."""
    return folder == "weights" or "=" in folder


def _layer(name: str, stored: StoredLayer, uri: str) -> Layer:
    shape = tuple(stored.shape)
    nbytes = math.prod(shape) * DTYPES[stored.dtype].itemsize
    return Layer(name, shape, stored.dtype, uri, 0, nbytes, DATASET_ROWS)


def _holds_weights(info: ObjectInfo) -> bool:
    """Whether the object is a part, the index, the manifest, or the object at the root, whose path is empty."""
    folder = info.path.split("/", 1)[0]
    if any(is_hidden(part) for part in info.path.split("/")):
        return False
    return info.path in ("", "manifest.json") or (info.path.endswith(".parquet") and folder != "report")
