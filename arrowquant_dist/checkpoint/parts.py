"""Puts a source's parts, each read from a folder of its own, together as one checkpoint with unambiguous names.

A layer's name begins with its folder's prefix (`2_Dense.linear.weight`); see folder/components.py. The prefixes alone
decide to which part a name belongs, and a name that would thus belong to another part is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile, as_listed
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.folder.sidecars import Sidecars
from arrowquant_dist.storage.base import Store

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class FolderPart:
    """What one folder contributes; fields as in Checkpoint. prefix: of its names in the dataset, "" or `a.b.`."""

    prefix: str
    format: str
    files: Sequence[SourceFile]
    layers: Sequence[Layer]
    aliases: Mapping[str, str]
    decoded: Mapping[str, str]
    left_out: Mapping[str, str]
    kept: Mapping[str, str]
    notes: Sequence[str]
    unscaled: Mapping[str, tuple[str, ...]]

    def prefixed(self) -> FolderPart:
        """The same part with the names that the dataset has."""
        if not self.prefix:
            return self
        prefix = self.prefix
        return replace(
            self,
            layers=[replace(layer, name=prefix + layer.name) for layer in self.layers],
            aliases={prefix + name: prefix + stored for name, stored in self.aliases.items()},
            decoded={prefix + name: prefix + layer for name, layer in self.decoded.items()},
            left_out=_prefixed(self.left_out, prefix),
            kept=_prefixed(self.kept, prefix),
            unscaled={prefix + name: tuple(prefix + n for n in near) for name, near in self.unscaled.items()},
            notes=[f"{prefix[:-1].replace('.', '/')}/: {note}" for note in self.notes],
        )

    @property
    def names(self) -> Iterable[str]:
        for layer in self.layers:
            yield layer.name
        yield from self.aliases
        yield from self.decoded
        yield from self.left_out


def put_together(
    store: Store, parts: Sequence[FolderPart], sidecars: Sidecars, notes: Iterable[str]
) -> Checkpoint:
    """The checkpoint of these parts, whose notes follow `notes`. Raises InvalidCheckpoint if names clash."""
    named = [part.prefixed() for part in parts]
    _refuse_clashes(named, store.uri)
    return Checkpoint(
        store.uri,
        named[0].format,
        tuple(layer for part in named for layer in part.layers),
        tuple(file for part in named for file in part.files),
        _merged([part.aliases for part in named]),
        sidecars.paths,
        _merged([part.decoded for part in named]),
        (*notes, *sidecars.notes, *(note for part in named for note in part.notes)),
        left_out=_merged([part.left_out for part in named]),
        kept=_merged([part.kept for part in named]),
        unscaled=_merged([part.unscaled for part in named]),
        sidecar_files=as_listed(store, sidecars.files),
    )


def _refuse_clashes(parts: Sequence[FolderPart], uri: str) -> None:
    prefixes = sorted({part.prefix for part in parts}, key=len, reverse=True)
    if len(prefixes) < 2:
        return
    for part in parts:
        longer = tuple(prefix for prefix in prefixes if len(prefix) > len(part.prefix))
        for name in part.names:
            if name.startswith(longer):
                message = (
                    "in the dataset, the name of this tensor would be one of another folder of this model; "
                    "rename the tensor or the folder"
                )
                raise InvalidCheckpoint(message, uri=uri, layer=name)


def _prefixed(values: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    return {prefix + name: value for name, value in values.items()}


def _merged(values: Iterable[Mapping[str, _Value]]) -> dict[str, _Value]:
    merged: dict[str, _Value] = {}
    for value in values:
        merged |= value
    return merged
