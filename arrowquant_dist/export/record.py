"""export.json: what an export has written and from what. It alone makes an export complete, so it is written last.

Nothing in it depends on when or by whom it was written: equal exports of one dataset have equal records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Self

import xxhash

from arrowquant_dist.code_digest import export_digest
from arrowquant_dist.errors import TargetConflict
from arrowquant_dist.export.format import ExportDraft, ExportFormat
from arrowquant_dist.export.mark import made_mark
from arrowquant_dist.export_names import RECORD_KIND
from arrowquant_dist.field_types import check_types
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.manifest import StoredFile, hash_of

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class ExportOrigin:
    """What an export is made from. dataset: its URI. manifest: hash of its manifest.json, or of the names, sizes and
    versions of its files if there is none. source: URI of the checkpoint that layers were quantized anew from.
    source_files: hash of the names, sizes and versions of its files."""

    dataset: str
    manifest: str
    source: str | None = None
    source_files: str | None = None


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """A record. format: name of the format. options: those of the format, by name. mark: that in each of the export's
    files. origin: what it is made from. code: digest of the writing code. max_file_nbytes: largest size of a file.
    notes: for people. version: that of the package. files: all files of the output."""

    format: str
    options: dict[str, Any]
    mark: str
    origin: ExportOrigin
    code: str
    max_file_nbytes: int
    notes: tuple[str, ...]
    version: str
    files: tuple[StoredFile, ...] = ()

    @classmethod
    def of(cls, form: ExportFormat, draft: ExportDraft, origin: ExportOrigin, max_file_nbytes: int) -> Self:
        """Returns the record of a planned export, without files."""
        options = _options(form)
        code = export_digest()
        head = [form.name, options, origin.manifest, origin.source_files, code, max_file_nbytes]
        state = xxhash.xxh3_128(json.dumps(head, sort_keys=True).encode())
        for layer in draft.layers:
            state.update(f"\n{layer!r}".encode())
        for path, data in sorted(draft.changed.items()):
            state.update(f"\n{path}\0{len(data)}\0".encode() + data)
        state.update(f"\n{sorted(draft.left_out)}".encode())
        mark = made_mark(state.hexdigest(), code)
        return cls(form.name, options, mark, origin, code, max_file_nbytes, draft.notes, _package_version())

    def differences(self, planned: ExportRecord) -> list[str]:
        """Returns what differs in the planned export from this one, for people. Nothing if only the code differs: what
        other code has completed is complete."""
        if self.mark == planned.mark:
            return []
        pairs = {
            "format": (self.format, planned.format),
            "dataset": (self.origin.manifest, planned.origin.manifest),
            "source": (self.origin.source_files, planned.origin.source_files),
            "max_file_bytes": (self.max_file_nbytes, planned.max_file_nbytes),
        }
        if self.format == planned.format:  # other formats have other options
            pairs |= {name: (was, planned.options.get(name, "unknown")) for name, was in self.options.items()}
        found = [
            f"{name}: {was} there, {is_now} here" for name, (was, is_now) in pairs.items() if was != is_now
        ]
        return found or (["its layers are written in another way"] if self.code == planned.code else [])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": RECORD_KIND, "export_version": RECORD_VERSION, **asdict(self)}

    def to_bytes(self) -> bytes:
        return (json.dumps(self.to_dict(), indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, uri: str) -> Self:
        """Parses a record. Raises TargetConflict if it is not the record of an export, or is a newer version's."""
        try:
            values = parse_json(data)
            head = values.pop("kind"), values.pop("export_version")
            files = tuple(StoredFile(**file) for file in values.pop("files"))
            origin, notes = ExportOrigin(**values.pop("origin")), tuple(values.pop("notes"))
            record = cls(files=files, origin=origin, notes=notes, **values)
            check_types(record, "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"this is not the record of an export ({error}); choose another folder, or remove it"
            raise TargetConflict(message, uri=uri) from error
        if head != (RECORD_KIND, RECORD_VERSION):
            message = "this is the record of an export by another release; use that release, or choose another folder"
            raise TargetConflict(message, uri=uri)
        return record


def files_hash(files: Iterable[tuple[str, int, str]]) -> str:
    """Returns a hash of the (name, nbytes, version) of each file."""
    return hash_of(json.dumps(sorted(files)).encode())


def _options(form: Any) -> dict[str, Any]:
    """Returns the fields of the format's dataclass as plain values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(form)))
    return values


def _package_version() -> str:
    try:
        return metadata.version("arrowquant-dist")
    except metadata.PackageNotFoundError:
        return "unknown"
