"""Checkpoints in several files: combines their layers in one table, and checks them against an index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.errors import InvalidCheckpoint, are, counted, listed
from arrowquant_dist.storage.base import Store

_Tensors = tuple[Sequence[Layer], Mapping[str, str]]
_Named = tuple[str, Collection[str]]


def keep_promised(path: str, tensors: _Tensors, promised: Mapping[str, str]) -> tuple[_Tensors, list[str]]:
    """The layers and aliases of the file at `path` without those that an index assigns to another file, and the names
    of those.

    A tensor with several names in the file is kept under those that the index leaves it.
    """
    layers, aliases = tensors
    names = [*(layer.name for layer in layers), *aliases]
    elsewhere = {name for name in names if promised.get(name, path) != path}
    if not elsewhere:
        return tensors, []
    names_of = defaultdict(list, {layer.name: [layer.name] for layer in layers})
    for name, stored in aliases.items():
        names_of[stored].append(name)
    kept: list[Layer] = []
    tied: dict[str, str] = {}
    for layer in layers:
        own = [name for name in names_of[layer.name] if name not in elsewhere]
        if own:
            kept.append(replace(layer, name=own[0]))
            tied.update(dict.fromkeys(own[1:], own[0]))
    return (kept, tied), sorted(elsewhere)


def check_promised(store: Store, index: str, promised: Mapping[str, str], found: Sequence[_Named]) -> None:
    """Checks that every tensor of the index is in the file that it names. (Tensors that only the files have are kept
    as well.)

    found: the path of each file, and the names of all its tensors.
    """
    anywhere = {name for _, names in found for name in names}
    missing = sorted(promised.keys() - anywhere)
    if missing:
        _refuse(
            f"{counted(len(missing), 'tensor')} that it names {are(len(missing))} in none of its files: "
            f"{listed(missing)}; download the checkpoint again",
            store.url(index),
        )
    for path, names in found:
        anywhere -= {name for name in names if promised.get(name) == path}
    elsewhere = sorted(anywhere & promised.keys())
    if elsewhere:
        _refuse(
            f"{counted(len(elsewhere), 'tensor')} {are(len(elsewhere))} not in the files that it names, but in "
            f"others: {listed(elsewhere)}; download the checkpoint again, or remove the index if the "
            "files alone are right",
            store.url(index),
        )


def merge_files(parts: Iterable[_Tensors]) -> tuple[list[Layer], dict[str, str]]:
    """Layers and aliases of several files, one after the other. Raises InvalidCheckpoint if a name is in two files."""
    seen: dict[str, str] = {}
    layers: list[Layer] = []
    aliases: dict[str, str] = {}
    for in_file, tied in parts:
        uri = in_file[0].uri if in_file else ""
        for name in [*(layer.name for layer in in_file), *tied]:
            if name in seen:
                _refuse(
                    f"this tensor is also in {seen[name]}, but a checkpoint has each once; use the one file "
                    "that counts as the source, or move the other away",
                    uri,
                    name,
                )
            seen[name] = uri
        layers += in_file
        aliases |= tied
    return layers, aliases


def _refuse(message: str, uri: str, layer: str | None = None) -> NoReturn:
    raise InvalidCheckpoint(message, uri=uri, layer=layer)
