"""The index of a checkpoint in several files, and numbered files without an index."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.errors import InvalidCheckpoint, NotFound, are, counted, listed
from arrowquant_dist.folder.threads import in_threads
from arrowquant_dist.storage.base import ObjectInfo, Store
from arrowquant_dist.strict_json import parse_json

MAX_INDEX_NBYTES = 100_000_000
_NUMBERED = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<variant>(\.\w+)?)(?P<suffix>\.\w+)"
)


def read_weight_map(store: Store, path: str) -> dict[str, str]:
    """{tensor name: path of its file} from a `*.index.json`. Raises InvalidCheckpoint if it is not a valid index."""
    uri = store.url(path)
    if store.size(path) > MAX_INDEX_NBYTES:
        _refuse(f"larger than {rounded_size(MAX_INDEX_NBYTES)}; this is not an index", uri)
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
        if not is_plain_path(file):
            _refuse(
                f"the index names the file {file!r}, which is not a plain path inside the folder", uri, name
            )
    folder = PurePosixPath(path).parent
    return {str(name): (folder / file).as_posix() for name, file in weight_map.items()}


def find_files(store: Store, paths: Iterable[str]) -> tuple[list[ObjectInfo], list[str]]:
    """The files that exist, sorted by name, and the paths of those that do not."""

    def look(path: str) -> ObjectInfo | None:
        try:
            return store.info(path)
        except NotFound:
            return None

    wanted = sorted(set(paths))
    found = in_threads(look, wanted)
    missing = [path for path, info in zip(wanted, found, strict=True) if info is None]
    return [info for info in found if info is not None], missing


def refuse_missing(store: Store, index: str, missing: Sequence[str], count: int) -> None:
    """Raises InvalidCheckpoint if files that an index names are missing. count: number of all files that it names."""
    if missing:
        _refuse(
            f"{len(missing)} of the {counted(count, 'file')} it names {are(len(missing))} missing: "
            f"{listed(missing)}; download what is missing",
            store.url(index),
        )


def number_of(name: str) -> tuple[str, int] | None:
    """For `model-00001-of-00003.safetensors`: the name of the whole, `model.safetensors`, and the count; None for
    other names."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return None
    return f"{match['stem']}{match['variant']}{match['suffix']}", int(match["count"])


def missing_numbers(paths: Collection[str]) -> list[str]:
    """The paths that are missing among files numbered like `…-00001-of-00003…`."""
    there = set(paths)
    matches = [match for match in map(_NUMBERED.fullmatch, sorted(there)) if match is not None]
    sets = {(match["stem"], *match.group("count", "variant", "suffix")): match for match in matches}
    missing: set[str] = set()
    for match in sets.values():
        first = 0 if _sibling(match, 0) in there else 1
        missing.update(_sibling(match, first + number) for number in range(int(match["count"])))
    return sorted(missing - there)


def is_plain_path(path: Any) -> bool:
    """Whether a path written by a stranger stays inside the folder."""
    if not isinstance(path, str) or not path or "\0" in path or "\\" in path or "://" in path:
        return False
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and pure.name != ""


def _sibling(match: re.Match[str], number: int) -> str:
    digits = f"{number:0{len(match['number'])}d}"
    return f"{match['stem']}-{digits}-of-{match['count']}{match['variant']}{match['suffix']}"


def _refuse(message: str, uri: str, layer: str | None = None) -> NoReturn:
    raise InvalidCheckpoint(message, uri=uri, layer=layer)
