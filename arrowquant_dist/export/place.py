"""The place of the output: what may be there before an export begins, and how the export ends.

Nothing is overwritten. Weights are written first, each file whole in one step (worker.py). When all are there, the
small files follow that make programs open the folder, and export.json last. An export that was killed at any point is
completed by the same command: whole files are kept, recognized by size and mark; small files are equal or refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arrowquant_dist.errors import IncompleteDataset, TargetConflict, listed
from arrowquant_dist.export.files import OutputFile
from arrowquant_dist.export.format import ExportDraft, Model, OutputFiles
from arrowquant_dist.export.mark import OTHER_VERSION, is_of_other_code, mark_of
from arrowquant_dist.export.record import ExportRecord
from arrowquant_dist.export.worker import refuse_other_file
from arrowquant_dist.export_names import MODEL_FILES, RECORD_PATH
from arrowquant_dist.storage.base import ObjectInfo, Store, is_temporary
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.layout import Listing
from arrowquant_dist.target.manifest import StoredFile
from arrowquant_dist.target.target import Target

_SUFFIXES = (".safetensors", ".gguf", ".parquet")


@dataclass(frozen=True, slots=True)
class Output:
    """What the export writes. record: without the files that do not exist yet. weights: files of weights. small: the
    other files."""

    record: ExportRecord
    weights: tuple[OutputFile, ...]
    small: SideFiles

    @property
    def paths(self) -> set[str]:
        return {RECORD_PATH, *self.small.paths, *(file.path for file in self.weights)}


@dataclass(frozen=True, slots=True)
class SideFiles:
    """The files beside the weights. Those of the dataset are read one at a time, as they are copied.

    model: the dataset. made: {path: content} of files that the format made. copied: paths of the dataset's files.
    """

    model: Model
    made: Mapping[str, bytes]
    copied: Sequence[str]

    @classmethod
    def of(cls, model: Model, draft: ExportDraft, files: OutputFiles) -> SideFiles:
        made = {**draft.changed, **files.closing}
        # a source that is itself an export has a record: this export has its own
        others = {*made, *draft.left_out, RECORD_PATH}
        return cls(model, made, [path for path in model.side_files if path not in others])

    @property
    def paths(self) -> list[str]:
        """The paths in the order of writing: files that programs look for come last, and the folder's config.json after
        all others, so that whoever finds it beside weights finds everything (folder/remains.py)."""

        def key(path: str) -> tuple[bool, bool, bool, str]:
            return self._is_looked_for(path), "/" not in path, path == MODEL_FILES[0], path

        return sorted([*self.copied, *self.made], key=key)

    def _is_looked_for(self, path: str) -> bool:
        return path in self.made or path.rpartition("/")[2] in MODEL_FILES

    def read(self, path: str) -> bytes:
        """Returns a file's content. Raises CorruptWeights if the dataset's manifest lists another."""
        if path in self.made:
            return self.made[path]
        return self.model.read_side_file(path)


class ExportPlace:
    """The folder that an export writes to. store: the folder."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def look(self) -> Listing:
        """Lists the folder. Raises TargetConflict if it is a file, or within one."""
        return Target(self.store).look()

    def finished(self, output: Output, found: Listing) -> ExportRecord | None:
        """Returns the record of the same export if all its files are there, else None. Raises TargetConflict for
        another export, for one that other code made and that has lost files, and if a file's place has something
        else."""
        self._refuse_other_than_files(output)
        if RECORD_PATH not in found:
            return None
        record = self._record()
        changes = record.differences(output.record)
        missing = found.missing(record.files)
        if missing and record.code != output.record.code:
            changes.append(f"another version of the code made it, and it has lost {listed(missing)}")
        if changes:
            message = (
                f"another export is here ({'; '.join(changes)}); choose another folder, or use --overwrite"
            )
            raise TargetConflict(message, uri=self.store.uri)
        return None if missing else record

    def refuse_others(self, output: Output, found: Listing) -> None:
        """Raises TargetConflict if a file's place has something else, or the folder is not this export's."""
        try:
            self._refuse_in_place(output, found)
        except TargetConflict:
            self._refuse_other_code(self._marked(found))
            raise
        ours = {RECORD_PATH, *(file.path for file in output.weights)}
        strange = [path for path in found.sizes if path not in output.paths and not is_temporary(path)]
        if strange and not ours & found.sizes.keys():
            marked = self._marked(found)
            self._refuse_other_code(marked)
            what, advice = "other files", "choose an empty or new one"
            if marked:
                what = "files of another export that was not finished"
                advice = f"{advice}, or use --overwrite"
                strange = sorted(marked)
            message = f"the folder holds {what} ({listed(sorted(strange))}); {advice}"
            raise TargetConflict(message, uri=self.store.uri)
        self._refuse_weights_beside(output, found)

    def clear(self, output: Output, found: Listing) -> None:
        """Deletes what exports have left, and nothing else. Raises TargetConflict if a file's place still has something
        else; other files under other names stay beside the output."""
        self._refuse_other_than_files(output)
        ours = self._of_exports(output, found)
        self._refuse_weights_beside(output, found)
        first = [path for path in (RECORD_PATH,) if path in ours]
        rest = sorted(ours - {RECORD_PATH}, key=lambda path: path.endswith(_SUFFIXES))
        for path in (*first, *rest):  # meanwhile, nobody finds a record without its files
            self.store.delete_unchanged({path: found.versions[path]})
        self._refuse_in_place(output, self.look())

    def finish(self, output: Output, weights: Iterable[StoredFile]) -> ExportRecord:
        """Writes the files beside the weights, and the record. weights: all files of weights, as they are there.

        Raises TargetConflict if another export was at work here: whichever of the two sees the other's files or record
        gives way (worker.py), so that no finished folder has weights of both.
        """
        made = {file.path: file for file in weights}
        found = self.look()
        missing = [file.path for file in output.weights if file.path not in made]
        missing += found.missing(made.values())
        if missing:
            message = (
                f"files that had been written are missing ({listed(missing)}); run the same command again"
            )
            raise IncompleteDataset(message, uri=self.store.uri)
        strange = sorted(self._marked(found).keys() - output.paths)
        if strange:  # programs that open the folder might take them for its weights
            message = f"another export wrote here at the same time ({listed(strange)}); stop it, and use --overwrite"
            raise TargetConflict(message, uri=self.store.uri)
        small = [self._create(path, output.small.read(path)) for path in output.small.paths]
        files = (*(made[file.path] for file in output.weights), *small)
        record = replace(output.record, files=files)
        if not self.store.create(RECORD_PATH, record.to_bytes()):
            there = self._record()
            if there.mark != record.mark:
                message = "another export was finished here in the meantime; choose another folder"
                raise TargetConflict(message, uri=self.store.uri)
            record = there
        self._sweep(output)
        return record

    def _record(self) -> ExportRecord:
        return ExportRecord.from_bytes(self.store.read(RECORD_PATH), self.store.url(RECORD_PATH))

    def _create(self, path: str, data: bytes) -> StoredFile:
        if not self.store.create(path, data) and self.store.read(path) != data:
            raise self._other_small(path)
        return StoredFile.of(path, data)

    def _refuse_in_place(self, output: Output, found: Listing) -> None:
        for file in output.weights:
            if file.path in found:
                info = ObjectInfo(file.path, found.sizes[file.path], found.versions[file.path])
                refuse_other_file(self.store, info, file)
        for path in output.small.paths:
            if path in found and self.store.read(path) != output.small.read(path):
                raise self._other_small(path)

    def _refuse_weights_beside(self, output: Output, found: Listing) -> None:
        """Raises TargetConflict for weights that no export has written in the folders of the output's weights:
        transformers takes a model.safetensors there for the model, whatever the index says. A GGUF file is opened by
        its own name."""
        kinds = {(_folder(file.path), Path(file.path).suffix) for file in output.weights}
        kinds = {kind for kind in kinds if kind[1] != ".gguf"}
        others = {path for path in found.sizes if (_folder(path), Path(path).suffix) in kinds}
        others = {path for path in others - output.paths if not is_temporary(path)}
        others = {path for path in others if mark_of(self.store, path, found.sizes[path]) is None}
        if others:
            message = f"the folder holds weights that no export wrote ({listed(sorted(others))})"
            advice = "which programs might take for this model's; choose an empty or new folder"
            raise TargetConflict(f"{message}, {advice}", uri=self.store.uri)

    def _refuse_other_code(self, marked: Mapping[str, str]) -> None:
        """Raises TargetConflict if other code wrote a mark, which explains all other differences. marked: from
        `_marked`."""
        if any(map(is_of_other_code, marked.values())):
            raise TargetConflict(OTHER_VERSION, uri=self.store.uri)

    def _refuse_other_than_files(self, output: Output) -> None:
        """Raises TargetConflict for folders, FIFOs and dangling links, which no listing contains."""
        if not is_local(self.store.uri):
            return
        places = {path: Path(self.store.uri) / path for path in sorted(output.paths)}
        odd = [path for path, place in places.items() if os.path.lexists(place) and not place.is_file()]
        if odd:
            message = f"{listed(odd)}: not a regular file, but the export writes a file of this name"
            raise TargetConflict(f"{message}; remove it, or choose another folder", uri=self.store.uri)

    def _other_small(self, path: str) -> TargetConflict:
        message = "this is not the file that the export writes; choose another folder, or remove it"
        return TargetConflict(message, uri=self.store.url(path))

    def _of_exports(self, output: Output, found: Listing) -> set[str]:
        """Returns paths of files that surely are an export's: listed in a record with this size, marked, or temporary;
        and, beside marked files without a record, the small files that exports write."""
        record = self._record() if RECORD_PATH in found else None
        ours = {path for path in found.sizes if is_temporary(path)}
        if record is not None:
            ours |= {
                RECORD_PATH,
                *(file.path for file in record.files if found.holds(file.path, file.nbytes)),
            }
        marked = self._marked(found)
        if marked and record is None:
            ours |= {path for path in output.small.paths if path in found}
        return ours | marked.keys()

    def _marked(self, found: Listing) -> dict[str, str]:
        """Returns {path: mark} for files of weights that any export has written."""
        paths = [path for path in found.sizes if path.endswith(_SUFFIXES)]
        marks = {path: mark_of(self.store, path, found.sizes[path]) for path in paths}
        return {path: mark for path, mark in marks.items() if mark is not None}

    def _sweep(self, output: Output) -> None:
        """Removes what killed workers left; a worker still at work on a file will find it complete."""
        names = {file.path for file in output.weights}
        self.store.delete(path for path in self.look().sizes if is_temporary(path))
        self.store.abandon(
            upload
            for upload in self.store.begun_uploads()
            if any(upload.key.endswith(name) for name in names)
        )


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
