"""What a format is: it decides what becomes of each layer, refuses what it cannot write, and lays out its files.

This takes two steps, since the header of a file contains the export's mark, which depends on what the layers become:
`draft` decides, and raises before anything is written; `files` says where each byte goes. Neither sees values. A format
is a frozen dataclass of its options (`export/registry.py` makes it from those of the command line).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import IncompleteDataset, listed
from arrowquant_dist.export.files import OutputFile
from arrowquant_dist.export.tensors import LayerExport
from arrowquant_dist.folder.components import MODULES, PIPELINE, Component
from arrowquant_dist.target.manifest import LOST_SIDECAR

# Advice for users who edited a side file on purpose.
_IF_MEANT = "restore the old file, and edit the one in the output"


@dataclass(frozen=True, slots=True)
class Model:
    """A dataset as formats see it: names, shapes and small files.

    dataset: the open dataset; formats do not use its values. checkpoint: the dataset opened as a source. components:
    the folders that the model's configs name, including its own; a layer belongs to the one with the longest matching
    prefix. source: the checkpoint from which values may be quantized anew (`--source`), with the same layer names; None
    for the dataset itself.
    """

    dataset: Dataset
    checkpoint: Checkpoint
    components: Sequence[Component]
    source: Checkpoint | None = None

    @property
    def layers(self) -> Mapping[str, StoredLayer]:
        """The layers by stored name, in storage order, without aliases."""
        return self.dataset.layers

    @property
    def aliases(self) -> Mapping[str, str]:
        """The stored name of each tied tensor: {name: stored name}."""
        return self.dataset.aliases

    @property
    def names(self) -> Mapping[str, StoredLayer]:
        """Every name of the source, a tied one directly after the stored one: {name: the layer stored for it}."""
        tied: dict[str, list[str]] = {}
        for name, stored in self.aliases.items():
            tied.setdefault(stored, []).append(name)
        return {
            name: layer
            for stored, layer in self.layers.items()
            for name in (stored, *sorted(tied.get(stored, ())))
        }

    @property
    def side_files(self) -> Sequence[str]:
        """The paths of the small files to export, such as config.json, tokenizer and README, including all that the
        manifest lists."""
        return tuple(dict.fromkeys((*self.checkpoint.sidecars, *self._listed)))

    @property
    def _listed(self) -> list[str]:
        manifest = self.dataset.manifest
        return [file.path for file in manifest.sidecars] if manifest is not None else []

    def check_side_files(self) -> None:
        """Raises IncompleteDataset if a file that the manifest lists is missing, which programs might silently do
        without, and CorruptWeights if one of those that name the model's folders is not as listed."""
        missing = [path for path in self._listed if not self._is_there(path)]
        if missing:
            raise IncompleteDataset(f"{listed(missing)}: {LOST_SIDECAR}", uri=self.dataset.uri)
        for path in (MODULES, PIPELINE):
            self.read(path)

    def _is_there(self, path: str) -> bool:
        return path in self.checkpoint.sidecars or self.dataset.store.exists(path)

    def read(self, path: str) -> bytes | None:
        """Returns a side file of at most 32 MiB, as `read_side_file` does; None if there is none."""
        return self.read_side_file(path) if path in self.side_files else None

    def read_side_file(self, path: str) -> bytes:
        """Returns a side file. Raises CorruptWeights if the dataset's manifest lists another content."""
        data, manifest = self.dataset.store.read(path), self.dataset.manifest
        if manifest is not None:
            manifest.check_sidecar(path, data, self.dataset.store.url(path), _IF_MEANT)
        return data

    def component_of(self, name: str) -> Component:
        """Returns the component that a layer of this name belongs to."""
        fitting = [component for component in self.components if name.startswith(component.prefix)]
        return max(fitting, key=lambda component: len(component.prefix))


@dataclass(frozen=True, slots=True)
class ExportDraft:
    """What becomes of a dataset.

    layers: in the order that the format prefers; containers may move them. changed: side files that differ from the
    dataset's, or are new. left_out: side files that the output does not get. notes: for people. metadata: what the
    files of weights say about the model besides its tensors, by the container's own keys.
    """

    layers: tuple[LayerExport, ...]
    changed: Mapping[str, bytes] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """The files of the output. weights: numbered from 0. closing: small files written after all weights, such as an
    index."""

    weights: tuple[OutputFile, ...]
    closing: Mapping[str, bytes] = field(default_factory=dict)


class ExportFormat(Protocol):
    """An output format. name: its name on the command line."""

    @property
    def name(self) -> str: ...

    def draft(self, model: Model) -> ExportDraft:
        """Decides what becomes of each layer. Raises InvalidConfig, which lists all layers that cannot be written
        (`errors.listed`) and says what to do."""

    def files(self, model: Model, draft: ExportDraft, mark: str, max_file_nbytes: int) -> OutputFiles:
        """Lays out the output's files. mark: has to be in the first or the last literal of each (`MARK_KEY`). Equal
        arguments give equal files."""
