"""What else is in a source's folder: datasets, folders that nothing names, and the error if no weights are found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from arrowquant_dist.errors import InvalidCheckpoint, listed
from arrowquant_dist.export_names import MODEL_FILES, RECORD_PATH, SERVED_PATH
from arrowquant_dist.folder.adapters import adapter_error
from arrowquant_dist.folder.components import PIPELINE, Component
from arrowquant_dist.folder.listing import SourceFolder
from arrowquant_dist.folder.names import is_weights, rank_of, slices_reason
from arrowquant_dist.folder.sidecars import is_targets_own
from arrowquant_dist.folder.weights import adapters_in
from arrowquant_dist.target.exports import NO_WEIGHTS, UNFINISHED, finished_export, marked

_MANIFEST, _INDEX, _WEIGHTS = "manifest.json", "index.parquet", "weights"
_PARQUET = ".parquet"
_MOST_FOLDERS = 200
_MOST_FILES = 2_000
_LOOKED_FOR = (
    "manifest.json with weights/ (a target), model.safetensors.index.json, *.safetensors, "
    "pytorch_model.bin.index.json, *.bin, *.pt, *.pth, *.ckpt, *.parquet"
)


def is_target(folder: SourceFolder) -> bool:
    """Whether a run of ours wrote this, even if its manifest is a folder by now."""
    paths = {*folder.folders(), *(info.path for info in folder.files())}
    return _MANIFEST in paths and (_INDEX in paths or _has_parquet(folder, _WEIGHTS))


def has_parquet(folder: SourceFolder) -> bool:
    """Whether Parquet files are at the top, in weights/ or in the `key=value` folders of a partitioned dataset."""
    below = [path for path in folder.folders() if path == _WEIGHTS or "=" in path]
    return any(info.path.endswith(_PARQUET) for info in folder.files()) or any(
        _has_parquet(folder, path) for path in below
    )


def refuse_unfinished_export(folder: SourceFolder, weights: Iterable[Sequence[str]]) -> None:
    """Raises InvalidCheckpoint if there are weights of an export of ours without the files that are written after all
    of them: some may be missing, and so is what says which model they belong to. weights: paths of each component's
    weights."""
    found = {info.path for info in folder.files()}
    first = [path for paths in weights for path in paths[:1]]
    # the folder's own config.json is written last; if all weights are in components, there may be none
    last = MODEL_FILES[:1] if any("/" not in path for path in first) else MODEL_FILES
    if found & {RECORD_PATH, *last}:
        return
    if marked(folder.store, first) is not None:
        raise InvalidCheckpoint(UNFINISHED, uri=folder.store.uri)


def remaining_notes(folder: SourceFolder, taken: Collection[str], named: Collection[str]) -> list[str]:
    """Notes about what was left out. taken: the folders whose weights are the source. named: those named by configs."""
    notes = []
    if "" not in taken:
        beside = [info.path for info in folder.files() if is_weights(info.path)]
        if beside:
            what = f"the weights are those of the folders that its config names ({listed(sorted(taken))})"
            notes.append(f"{what}; files beside these folders were left out: {listed(beside)}")
    others = [path for path in _folders_with_weights(folder) if path not in named]
    if others:
        notes.append(
            f"folders with weights that no config here names were left out: {listed(others)}. "
            "To quantize one of them, use it as the source"
        )
    own = [info.path for info in folder.files() if is_targets_own(info.path)]
    if own:
        notes.append(f"not copied (a target has files of these names itself): {listed(own)}")
    return notes


def nothing_found(folder: SourceFolder, component: Component) -> InvalidCheckpoint:
    """The error that says why a folder has no weights: it is an adapter, incomplete, or not a model."""
    adapters = adapters_in(folder, component.path)
    uri = folder.store.url(component.path)
    if adapters:
        return adapter_error(folder.store, adapters, component.path)
    if component.named_by and component.needs_weights:
        message = f"{component.named_by} names this folder, but it has no weights; download them"
        return InvalidCheckpoint(message, uri=uri)
    with_weights = _folders_with_weights(folder)
    if with_weights and not folder.find(PIPELINE):
        return _weights_below(folder, with_weights)
    files = [info.path for info in folder.files(component.path)]
    if SERVED_PATH in files:
        return InvalidCheckpoint(NO_WEIGHTS, uri=uri)
    if RECORD_PATH in files and (reason := finished_export(folder.store)) is not None:
        return InvalidCheckpoint(reason, uri=uri)
    if RECORD_PATH not in files and marked(folder.store, [path for path in files if path.endswith(".gguf")]):
        return InvalidCheckpoint(UNFINISHED, uri=uri)
    names = list(files)
    names += [f"{path}/" for path in folder.folders(component.path)]
    there = listed(names)
    has_gguf = any(name.endswith(".gguf") for name in names)
    advice = (
        "GGUF is not read: use the model that it was made from"
        if has_gguf
        else "Use the folder or file that holds them"
    )
    return InvalidCheckpoint(
        f"no weights here. Looked for {_LOOKED_FOR}; found {there or 'an empty folder'}. {advice}", uri=uri
    )


def _weights_below(folder: SourceFolder, paths: list[str]) -> InvalidCheckpoint:
    shown = listed([f"{path}/" for path in paths])
    adapters = [path for path in paths if adapters_in(folder, path)]
    if len(adapters) == len(paths):
        return adapter_error(
            folder.store, [path for at in paths for path in adapters_in(folder, at)], paths[0]
        )
    ranks = [path for path in paths if rank_of(path) is not None]
    if len(ranks) > 1:
        return InvalidCheckpoint(slices_reason(ranks), uri=folder.store.uri)
    message = f"no weights here, and no config that names those below; use one of these folders: {shown}"
    return InvalidCheckpoint(message, uri=folder.store.uri)


def _folders_with_weights(folder: SourceFolder) -> list[str]:
    """Folders with weights directly in the source's folder. Only some of their files are looked at: a home directory
    has many."""
    return list(_with_weights(folder))


def _with_weights(folder: SourceFolder) -> Iterator[str]:
    for path in folder.folders()[:_MOST_FOLDERS]:
        if any(is_weights(name) for name in folder.peek(path, _MOST_FILES)):
            yield path


def _has_parquet(folder: SourceFolder, path: str) -> bool:
    return any(info.path.endswith(_PARQUET) for info in folder.tree(path))
