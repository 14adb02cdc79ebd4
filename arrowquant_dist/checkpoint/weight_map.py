"""Checkpoints in several files: what an index promises, and many headers read side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, NoReturn, TypeVar

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.errors import InvalidCheckpoint, NotFound, listed
from arrowquant_dist.storage.base import ObjectInfo, Store
from arrowquant_dist.strict_json import parse_json

MAX_INDEX_NBYTES = 100_000_000
_HEADER_THREADS = 16
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.\w+)")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_weight_map(store: Store, path: str) -> dict[str, str]:
    """{tensor name: file name} of a `*.index.json`. Raises InvalidCheckpoint where it is not that."""
    uri = store.url(path)
    if store.size(path) > MAX_INDEX_NBYTES:
        _refuse(f"the index is larger than {MAX_INDEX_NBYTES} bytes; this is none", uri)
    try:
        index = parse_json(store.read(path))
    except ValueError as error:
        raise InvalidCheckpoint(
            f"the index is not readable JSON ({error}); download it again", uri=uri
        ) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse("the index has no weight_map of tensor names to files; download it again", uri)
    for name, file in weight_map.items():
        if not _is_safe(file):
            _refuse(f"the index names the file {file!r}, which is no plain name inside the folder", uri, name)
    return {str(name): str(file) for name, file in weight_map.items()}


def find_files(store: Store, index_path: str, weight_map: dict[str, str]) -> list[ObjectInfo]:
    """The files that an index names, sorted by name. InvalidCheckpoint lists those that are not there."""
    folder = PurePosixPath(index_path).parent
    paths = sorted({(folder / file).as_posix() for file in weight_map.values()})

    def look(path: str) -> ObjectInfo | None:
        try:
            return store.info(path)
        except NotFound:
            return None

    found = in_threads(look, paths)
    missing = [path for path, info in zip(paths, found, strict=True) if info is None]
    if missing:
        _refuse(
            f"{len(missing)} of the {len(paths)} files it names are missing: {listed(missing)}; download them",
            store.url(index_path),
        )
    return [info for info in found if info is not None]


def check_promised(store: Store, index_path: str, weight_map: dict[str, str], names: Iterable[str]) -> None:
    """Every tensor of the index is in the files. (Tensors that only the files have are kept as well.)"""
    missing = sorted(weight_map.keys() - set(names))
    if missing:
        _refuse(
            f"{len(missing)} tensors that it names are in none of its files: {listed(missing)}; "
            "download the checkpoint again",
            store.url(index_path),
        )


def check_numbered(store: Store, paths: Sequence[str]) -> None:
    """Files called `…-00001-of-00003…` without an index are all there, else InvalidCheckpoint."""
    for path in paths:
        match = _NUMBERED.fullmatch(path)
        if match is None or len(match["count"]) > 6:
            continue
        count = int(match["count"])
        first = 0 if _sibling(match, 0) in paths else 1
        missing = sorted({_sibling(match, first + number) for number in range(count)}.difference(paths))
        if missing:
            _refuse(f"{len(missing)} of {count} files are missing: {listed(missing)}; get them", store.uri)


def merge_files(
    parts: Iterable[tuple[Sequence[Layer], dict[str, str]]],
) -> tuple[list[Layer], dict[str, str]]:
    """Layers and aliases of several files, one after the other. A name in two files: InvalidCheckpoint."""
    seen: dict[str, str] = {}
    layers: list[Layer] = []
    aliases: dict[str, str] = {}
    for in_file, tied in parts:
        uri = in_file[0].uri if in_file else ""
        for name in [*(layer.name for layer in in_file), *tied]:
            if name in seen:
                _refuse(
                    f"this tensor is also in {seen[name]}, and a checkpoint has each once; give the one file "
                    "that counts as the source, or move the other away",
                    uri,
                    name,
                )
            seen[name] = uri
        layers += in_file
        aliases |= tied
    return layers, aliases


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """`function` of each item, in order, many requests at a time. The first error ends it."""
    if len(items) < 2:
        return [function(item) for item in items]
    pool = ThreadPoolExecutor(min(_HEADER_THREADS, len(items)), thread_name_prefix="headers")
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


def _is_safe(file: Any) -> bool:
    if not isinstance(file, str) or not file or "\0" in file or "\\" in file or "://" in file:
        return False
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts and path.name != ""


def _sibling(match: re.Match[str], number: int) -> str:
    return f"{match['stem']}-{number:0{len(match['number'])}d}-of-{match['count']}{match['suffix']}"


def _refuse(message: str, uri: str, layer: str | None = None) -> NoReturn:
    raise InvalidCheckpoint(message, uri=uri, layer=layer)
