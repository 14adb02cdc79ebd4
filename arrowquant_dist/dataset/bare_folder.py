"""Which files of a folder without a manifest are the dataset, and what a place is that holds no dataset."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from arrowquant_dist.errors import IncompleteDataset, NoRegularFile, NotFound, are, counted
from arrowquant_dist.export_names import RECORD_PATH, SERVED_PATH
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.storage.regular import obstructed
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.exports import NO_WEIGHTS, UNFINISHED, finished_export, marked
from arrowquant_dist.target.layout import PLAN_PATH, WEIGHTS_FOLDER

_SUFFIX, _MAGIC = ".parquet", b"PAR1"
_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)\.parquet")


def bare_paths(store: Store) -> Sequence[str]:
    """Paths of the Parquet files of a folder without a manifest, or "" if the store is itself a file. Raises NotFound,
    saying what is there instead, and IncompleteDataset if the numbers in names show that files are missing."""
    if store.exists(""):
        _refuse_other_file(store)
        return [""]
    if store.has_file(PLAN_PATH):
        message = "the run that writes it has not finished; run the same quantize command again"
        raise IncompleteDataset(message, uri=store.uri)
    _refuse_links_to_nothing(store)
    found = [info.path for info in store.list()]
    paths = [path for path in found if is_data(path)]
    in_weights = [path for path in paths if path.startswith(f"{WEIGHTS_FOLDER}/")]
    if not paths:
        raise NotFound(why_no_dataset(store, found), uri=store.uri)
    _refuse_missing(store, in_weights or paths)
    return in_weights or paths


def refuse_begun_export(store: Store) -> None:
    """Raises NotFound if there are weights of an export without its record."""
    found = [info.path for info in store.list()] if not store.exists("") else []
    if RECORD_PATH not in found and marked(store, _weights(found)[:1]) is not None:
        raise NotFound(UNFINISHED, uri=store.uri)


def refuse_export(store: Store) -> None:
    """Raises NotFound for a finished export that is not a dataset, since it is not Parquet."""
    if store.exists(RECORD_PATH) and (reason := finished_export(store)) is not None:
        raise NotFound(reason, uri=store.uri)


def _refuse_other_file(store: Store) -> None:
    """Raises NotFound for a file that is Parquet neither by its name nor by its first bytes."""
    if store.uri.endswith(_SUFFIX):
        return
    nbytes = min(store.size(""), len(_MAGIC))
    if store.read_range("", ByteRange(0, nbytes)).tobytes() != _MAGIC:
        message = "this is not a Parquet file, so not a dataset; give the target of a run, or a .parquet file of one"
        raise NotFound(message, uri=store.uri)


def _refuse_missing(store: Store, paths: Sequence[str]) -> None:
    """Raises IncompleteDataset if names say how many files there are and some of them are missing."""
    there: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for path in paths:
        if (match := _NUMBERED.fullmatch(path)) is not None:
            there[match[1], match[3]].add(match[2])
    for (name, total), numbers in there.items():
        if len(numbers) < int(total):
            found = f"{len(numbers)} of {counted(int(total), 'file')} {are(len(numbers))} here ({name}-…-of-{total})"
            is_export = not store.exists(RECORD_PATH) and marked(store, paths[:1]) is not None
            what = "an unfinished export; run the same export command again" if is_export else ""
            raise IncompleteDataset(f"{found}: {what or 'fetch those that are missing'}", uri=store.uri)


def _refuse_links_to_nothing(store: Store) -> None:
    """Raises NoRegularFile for links to nothing: no listing contains them, so a part of the dataset would be missing
    silently. Folders may have names like files, and FIFOs are refused when they are opened."""
    if is_local(store.uri):
        for path, what in obstructed(Path(store.uri), is_data):
            if not Path(store.uri, path).exists():
                message = (
                    f"this is {what}, in the place of a part of the dataset; fetch it again, or remove it"
                )
                raise NoRegularFile(message, uri=store.url(path))


def why_no_dataset(store: Store, paths: Sequence[str]) -> str:
    """Why a folder without Parquet files is not a dataset. paths: all files in it."""
    if RECORD_PATH in paths and (reason := finished_export(store)) is not None:
        return reason
    if SERVED_PATH in paths:
        return NO_WEIGHTS
    weights = _weights(paths)
    if RECORD_PATH not in paths and marked(store, weights[:1]) is not None:
        return UNFINISHED
    if weights:
        return (
            "this is a checkpoint, not a dataset; quantize it first, or give the target of the run that did"
        )
    return "no manifest.json and no .parquet file here; check the spelling"


def _weights(paths: Sequence[str]) -> list[str]:
    """Those paths that are weights of a checkpoint, by their suffix."""
    return [path for path in paths if path.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf"))]


def is_data(path: str) -> bool:
    """Whether a path is a Parquet file that is not hidden, by the rules of other readers of such folders."""
    return path.endswith(_SUFFIX) and not any(part[0] in "._" for part in PurePosixPath(path).parts)
