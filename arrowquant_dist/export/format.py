"""What a format is: it says what becomes of each layer, refuses what it cannot write, and lays its files out.

Two steps, since a file's header has the export's mark in it, and the mark follows from what the layers become:
`draft` decides, and raises before anything is read or written; `files` says where each byte goes. Neither sees values.
A format is a frozen dataclass of the options that it takes (`export/registry.py` makes it of the command line's).
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

# Of a side file: what who edited it on purpose can do.
_IF_MEANT = "put the old one back, and change that of the output"


@dataclass(frozen=True, slots=True)
class Model:
    """A dataset as formats see it: names, shapes and small files.

    dataset: open; its values are not for formats. checkpoint: the same as a source. components: the folders that the
    model's configs name, its own among them; a layer is of the one with the longest prefix that its name begins with.
    source: what values may be quantized anew from (`--source`), whose layers have these names; None: the dataset's own.
    """

    dataset: Dataset
    checkpoint: Checkpoint
    components: Sequence[Component]
    source: Checkpoint | None = None

    @property
    def layers(self) -> Mapping[str, StoredLayer]:
        """By name, in storage order; aliases are not among them."""
        return self.dataset.layers

    @property
    def aliases(self) -> Mapping[str, str]:
        """{name: stored name} of tied tensors."""
        return self.dataset.aliases

    @property
    def names(self) -> Mapping[str, StoredLayer]:
        """Every name of the source, a tied one right after that which is stored: {name: the layer stored for it}."""
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
        """Paths of the small files that come along: config.json, tokenizer, README; whatever the manifest lists."""
        return tuple(dict.fromkeys((*self.checkpoint.sidecars, *self._listed)))

    @property
    def _listed(self) -> list[str]:
        manifest = self.dataset.manifest
        return [file.path for file in manifest.sidecars] if manifest is not None else []

    def check_side_files(self) -> None:
        """IncompleteDataset where one is gone that the manifest lists: programs might do without it in silence.
        CorruptWeights where one is not what it lists, of those that say what folders of it the model consists of."""
        missing = [path for path in self._listed if not self._is_there(path)]
        if missing:
            raise IncompleteDataset(f"{listed(missing)}: {LOST_SIDECAR}", uri=self.dataset.uri)
        for path in (MODULES, PIPELINE):
            self.read(path)

    def _is_there(self, path: str) -> bool:
        return path in self.checkpoint.sidecars or self.dataset.store.exists(path)

    def read(self, path: str) -> bytes | None:
        """One of the side files, at most 32 MiB, as `read_side_file`; None where there is none."""
        return self.read_side_file(path) if path in self.side_files else None

    def read_side_file(self, path: str) -> bytes:
        """CorruptWeights where the dataset's manifest lists another content."""
        data, manifest = self.dataset.store.read(path), self.dataset.manifest
        if manifest is not None:
            manifest.check_sidecar(path, data, self.dataset.store.url(path), _IF_MEANT)
        return data

    def component_of(self, name: str) -> Component:
        """That a layer of this name belongs to."""
        fitting = [component for component in self.components if name.startswith(component.prefix)]
        return max(fitting, key=lambda component: len(component.prefix))


@dataclass(frozen=True, slots=True)
class ExportDraft:
    """What becomes of a dataset.

    layers: in the order that the format likes; containers may move them. changed: side files that the output has in
    another form than the dataset, or besides. left_out: side files that it does not get. notes: for people.
    metadata: what files of weights say of the model beside its tensors, by the container's own keys.
    """

    layers: tuple[LayerExport, ...]
    changed: Mapping[str, bytes] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """weights: numbered from 0. closing: small files that are written once all weights are there, such as an index."""

    weights: tuple[OutputFile, ...]
    closing: Mapping[str, bytes] = field(default_factory=dict)


class ExportFormat(Protocol):
    """name: as on the command line."""

    @property
    def name(self) -> str: ...

    def draft(self, model: Model) -> ExportDraft:
        """What becomes of each layer. Raises InvalidConfig, which lists every layer that cannot be written
        (`errors.listed`) and says what to do."""

    def files(self, model: Model, draft: ExportDraft, mark: str, max_file_nbytes: int) -> OutputFiles:
        """The output's files. mark: has to stand in the first or the last literal of each (`MARK_KEY`). The same
        arguments give the same files."""
