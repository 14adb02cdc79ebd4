"""Writes the folder that vLLM is given as the model: the small files of a dataset, and where its weights are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arrowquant_dist.config import RunConfig
from arrowquant_dist.errors import InvalidConfig, StorageError, TargetConflict
from arrowquant_dist.export.compressed_tensors.draft import CompressedTensors
from arrowquant_dist.export.decoded import DecodedSafetensors
from arrowquant_dist.export.options import ExportOptions
from arrowquant_dist.export.run import open_model
from arrowquant_dist.export_names import SERVED_PATH
from arrowquant_dist.location import Location, location
from arrowquant_dist.plugins.vllm.settings import SERVE_DECODED
from arrowquant_dist.storage.uris import is_local, real_place, redact

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class ServedDecoded:
    """Values are decoded: vLLM runs the model in 16 bits."""


@dataclass(frozen=True, slots=True)
class ServedAsCodes:
    """vLLM keeps the codes and multiplies by them. activations: `int8` for W8A8, from int8 codes with a scale per
    row."""

    activations: str | None = None


@dataclass(frozen=True, slots=True)
class _CheckedCodes(CompressedTensors):
    """The format of the export, with all scales checked before vLLM is started."""

    otherwise: ClassVar[str] = SERVE_DECODED


@dataclass(frozen=True, slots=True)
class ModelFolderWritten:
    """What is at `folder`. files: paths within it. notes: on what differs from the dataset."""

    folder: str
    files: tuple[str, ...]
    notes: tuple[str, ...]


def write_model_folder(
    target: Location, folder: Location, served: ServedAsCodes | ServedDecoded, run: RunConfig | None = None
) -> ModelFolderWritten:
    """Writes `folder`, a local directory, for `vllm serve FOLDER --load-format arrowquant`; weights stay in `target`.

    run: how to access the target's storage. Raises InvalidConfig listing all layers whose codes vLLM cannot use, before
    anything is written, and TargetConflict for a directory with other content.
    """
    place, out = location(target, "target"), _local_folder(location(folder, "folder"))
    options = ExportOptions(format="compressed-tensors")
    model = open_model(place, options, RunConfig() if run is None else run)
    form = (
        DecodedSafetensors()
        if isinstance(served, ServedDecoded)
        else _CheckedCodes(activations=served.activations == "int8")
    )
    draft = form.draft(model)
    small = {
        path: data
        for path in model.side_files
        if path not in draft.left_out and (data := draft.changed.get(path) or model.read(path)) is not None
    }
    small[SERVED_PATH] = (json.dumps({"target": real_place(place)}, indent=2) + "\n").encode()
    _write(out, small)
    return ModelFolderWritten(str(out), tuple(small), draft.notes)


def _local_folder(folder: str) -> Path:
    """Returns the folder's path. Raises InvalidConfig for a URL: vLLM needs the model's folder on its disk."""
    if not is_local(folder):
        message = (
            "vLLM reads these small files from a local directory; choose one, the weights stay where they are"
        )
        raise InvalidConfig(message, uri=redact(folder))
    return Path(folder.rpartition("://")[2]).expanduser()


def _write(out: Path, small: Mapping[str, bytes]) -> None:
    """Writes the files. Raises TargetConflict for a file, or a directory with other content, and StorageError if the
    system refuses.

    The first file identifies the directory, and config.json comes last: an interrupted folder cannot be loaded as a
    model, and is completed by the same command.
    """
    try:
        if out.exists() and not out.is_dir():
            raise TargetConflict("is not a directory; choose another path", uri=str(out))
        if out.exists() and any(out.iterdir()) and not (out / SERVED_PATH).exists():
            raise TargetConflict(
                "is not empty, and this command did not make it; choose another path", uri=str(out)
            )
        (out / _CONFIG).unlink(missing_ok=True)
        for path in sorted(small, key=lambda path: (path != SERVED_PATH, path == _CONFIG)):
            _put(out / path, small[path])
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"the folder can't be written ({reason}); choose another one, or free some space"
        raise StorageError(message, uri=str(out)) from error


def _put(file: Path, data: bytes) -> None:
    """Writes the whole file in one step, or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    try:
        partial.write_bytes(data)
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
