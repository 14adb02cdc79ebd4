"""manifest.json: the content of a dataset. It alone makes parts a dataset, so it is written last."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any, Self

import xxhash

from arrowquant_dist.errors import (
    CorruptWeights,
    IncompleteDataset,
    InvalidCheckpoint,
    NotFound,
    counted,
)
from arrowquant_dist.format.record import RowRecord
from arrowquant_dist.format.schema import SCHEMA_VERSION
from arrowquant_dist.storage.base import Store
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.index import INDEX_PATH, IndexEntry, IndexTable, check_places, read_table
from arrowquant_dist.target.plan_file import RunIdentity
from arrowquant_dist.target.receipt import Receipt

MANIFEST_PATH = "manifest.json"
MANIFEST_VERSION = 2
LOST_SIDECAR = "listed in its manifest, but not there; fetch it again, or quantize with --repair"
_FORMAT = "arrowquant"
_ALIASES_HASH = "aliases_hash"  # written if there are aliases; earlier releases do not write it


def is_read(path: str) -> bool:
    """Whether a sidecar of this name is read by programs."""
    return not path.endswith(".md")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A whole object of the target. path: under the target. hash: `xxh3_128:<hex>` of its bytes."""

    path: str
    nbytes: int
    hash: str

    @classmethod
    def of(cls, path: str, data: bytes) -> Self:
        return cls(path, len(data), hash_of(data))


@dataclass(frozen=True, slots=True)
class ManifestPart:
    """A committed part file."""

    path: str
    shard: int
    rows: int
    nbytes: int
    hash: str


@dataclass(frozen=True, slots=True)
class ManifestTotals:
    """Sums over all rows. source_nbytes: size in the source's dtypes, or as stored in the source for codes that are
    kept. nbytes: size of the part files."""

    layers: int
    rows: int
    num_params: int
    source_nbytes: int
    nbytes: int

    @classmethod
    def of(cls, receipts: Collection[Receipt]) -> ManifestTotals:
        rows = [row for receipt in receipts for row in receipt.rows]
        return cls.of_rows(rows, sum(receipt.nbytes for receipt in receipts))

    @classmethod
    def of_rows(cls, rows: Collection[RowRecord], nbytes: int) -> ManifestTotals:
        """The totals of these rows. nbytes: size of the part files that hold them."""
        return cls(
            layers=len({row.header.layer_name for row in rows}),
            rows=len(rows),
            num_params=sum(row.header.num_params for row in rows),
            source_nbytes=sum(row.source_nbytes for row in rows),
            nbytes=nbytes,
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished dataset holds, and what made it.

    created_at: UTC, ISO 8601. versions: of the software that wrote it. source: {uri, format, files}, without
    credentials. aliases: {name: stored name} of tied tensors. sidecars: files copied from the source. run: the id of
    the run, whose plan has to be the one at the target (plan_file.RunIdentity.name). report: the report's files.
    Version 1 has neither run nor report.
    """

    created_at: str
    versions: dict[str, str]
    fingerprint: str
    source: dict[str, Any]
    config: dict[str, Any]
    compression: str
    aliases: dict[str, str]
    totals: ManifestTotals
    index: StoredFile
    parts: tuple[ManifestPart, ...]
    sidecars: tuple[StoredFile, ...] = ()
    run: str | None = None
    report: tuple[StoredFile, ...] = ()

    @classmethod
    def of(
        cls,
        receipts: Iterable[Receipt],
        *,
        index: bytes,
        sidecars: Mapping[str, bytes],
        fingerprint: str,
        source: dict[str, Any],
        config: dict[str, Any],
        compression: str,
        aliases: dict[str, str],
    ) -> Manifest:
        """The manifest of these committed shards, dated now; `run` and `report` are filled in later.

        index: the bytes of index.parquet.
        """
        ordered = sorted(receipts, key=lambda receipt: receipt.shard)
        return cls(
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=dict(_versions()),
            fingerprint=fingerprint,
            source=source,
            config=config,
            compression=compression,
            aliases=dict(aliases),
            totals=ManifestTotals.of(ordered),
            index=StoredFile.of(INDEX_PATH, index),
            parts=tuple(ManifestPart(r.part, r.shard, len(r.rows), r.nbytes, r.hash) for r in ordered),
            sidecars=tuple(StoredFile.of(path, data) for path, data in sorted(sidecars.items())),
        )

    @classmethod
    def read(cls, store: Store) -> Manifest:
        """The manifest of the target at `store`. Raises NotFound, CorruptWeights and InvalidCheckpoint."""
        return cls.from_bytes(store.read(MANIFEST_PATH), store.url(MANIFEST_PATH))

    @classmethod
    def of_finished(cls, store: Store, which: str) -> Manifest:
        """Reads the manifest as `read` does, and checks that its parts are there. which: what the dataset is needed
        for, as the message of NotFound says it. Raises IncompleteDataset if parts are gone."""
        try:
            found = cls.read(store)
        except NotFound as error:
            message = f"no finished dataset is there, {which}; run `quantize` first"
            raise NotFound(message, uri=store.url(MANIFEST_PATH)) from error
        found.refuse_cleared(store)
        return found

    @property
    def unscaled(self) -> tuple[str, ...]:
        """The patterns of float8 layers without scales that the dataset was made with."""
        found = self.config.get("unscaled_float8", ())
        return tuple(found) if isinstance(found, list) else ()

    def is_of(self, run: RunIdentity) -> bool:
        """Whether a driver of that run made it; for a manifest of version 1, whether the plans are equal."""
        return self.run == run.name if self.run is not None else self.fingerprint == run.fingerprint

    def refuse_cleared(self, store: Store) -> None:
        """Raises IncompleteDataset if the first part is gone; takes one small request.

        A driver that was stopped before it wrote its manifest may wake up and create it after another run has begun
        to replace its own. By then that run has deleted the parts, the first part first, and no part's name is ever
        used twice.
        """
        if self.parts and not store.exists(self.parts[0].path):
            message = (
                "the manifest names parts that are gone: it was left by a run that another one replaces, or the "
                "dataset is incomplete; run the quantize command again, or fetch all of the dataset again"
            )
            raise IncompleteDataset(message, uri=store.url(self.parts[0].path))

    def read_index(self, store: Store) -> list[IndexEntry]:
        """The rows of the index. Raises as `read_table`."""
        return self.read_table(store).entries()

    def kept_reasons(self, store: Store) -> dict[str, str]:
        """{layer: why it is kept} for the layers that are kept. Raises as `read_table` does."""
        table = self.read_table(store)
        names, reasons = (table.texts[name].to_list() for name in ("layer_name", "kept_reason"))
        of_all = dict(zip(names, reasons, strict=True))
        return {name or "": reason for name, reason in of_all.items() if reason is not None}

    def read_table(self, store: Store) -> IndexTable:
        """The index, checked against this manifest. Raises CorruptWeights and NotFound.

        Every entry's part is in `parts`, its ranges lie within that part, and each part has as many rows as listed.
        """
        uri = store.url(self.index.path)
        data = store.read(self.index.path)
        if StoredFile.of(self.index.path, data) != self.index:
            message = (
                f"its content ({len(data)} bytes) is not what the manifest lists; fetch it again, or quantize with "
                "--repair"
            )
            raise CorruptWeights(message, uri=uri)
        table = read_table(data)
        check_places(table, {part.path: (part.rows, part.nbytes) for part in self.parts}, uri)
        return table

    @property
    def read_sidecars(self) -> list[str]:
        """Paths of the sidecars that programs read. Files for people (.md) are not included: they may be edited."""
        return [sidecar.path for sidecar in self.sidecars if is_read(sidecar.path)]

    def check_sidecar(self, path: str, data: bytes, uri: str, if_meant: str = "pass verify=False") -> None:
        """Raises CorruptWeights if `data` is not what the run copied to `path`. Files that it did not copy pass.

        uri: of the file, for errors. if_meant: what to do if the file was edited on purpose, as the message says it.
        """
        copied = next((sidecar for sidecar in self.sidecars if sidecar.path == path), None)
        if copied is not None and StoredFile.of(path, data) != copied:
            size = f"{counted(len(data), 'byte')} instead of {copied.nbytes}"
            other = "the same size, but another hash" if len(data) == copied.nbytes else size
            message = (
                f"this is not the file that the manifest lists ({other}), so it was edited or is damaged; fetch it "
                f"again or, if the edit was intended, {if_meant}"
            )
            raise CorruptWeights(message, uri=uri)

    def to_dict(self) -> dict[str, Any]:
        head = {"format": _FORMAT, "schema_version": SCHEMA_VERSION, "manifest_version": MANIFEST_VERSION}
        guard = {_ALIASES_HASH: _hash_of_names(self.aliases)} if self.aliases else {}
        return {**head, **asdict(self), **guard}

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_dict(), indent=2).encode()

    @classmethod
    def from_bytes(cls, data: bytes, uri: str) -> Manifest:
        """Parses and validates. uri: for errors."""
        try:
            values = parse_json(data)
        except ValueError as error:
            message = (
                f"this is not JSON ({error}), so it is damaged; fetch it again, or quantize with --repair"
            )
            raise CorruptWeights(message, uri=uri) from error
        return cls.from_dict(values, uri)

    @classmethod
    def from_dict(cls, values: Any, uri: str = MANIFEST_PATH) -> Manifest:
        """Validates every field that decides what is read. Raises CorruptWeights, naming the wrong field.

        Raises InvalidCheckpoint for a manifest that is not arrowquant's, or is of a newer version.
        """
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise InvalidCheckpoint(
                "this manifest was not written by arrowquant-dist; check the URI", uri=uri
            )
        fields = _Fields(values, "", uri)
        if (
            fields.number("manifest_version") > MANIFEST_VERSION
            or fields.text("schema_version") != SCHEMA_VERSION
        ):
            newer = (
                f"manifest_version {values['manifest_version']}, schema_version {values['schema_version']}"
            )
            message = f"written by a newer arrowquant-dist ({newer}); update this one"
            raise InvalidCheckpoint(message, uri=uri)
        totals = fields.record("totals")
        manifest = cls(
            created_at=fields.text("created_at"),
            versions=fields.texts("versions"),
            fingerprint=fields.text("fingerprint"),
            source=fields.mapping("source"),
            config=fields.mapping("config"),
            compression=fields.text("compression"),
            aliases=fields.texts("aliases"),
            totals=ManifestTotals(
                **{name: totals.number(name) for name in ManifestTotals.__dataclass_fields__}
            ),
            index=_stored_file(fields.record("index")),
            parts=tuple(_part(part) for part in fields.records("parts")),
            sidecars=tuple(_stored_file(sidecar) for sidecar in fields.records("sidecars")),
        )
        if values["manifest_version"] > 1:
            report = tuple(_stored_file(file) for file in fields.records("report"))
            manifest = replace(manifest, run=fields.optional_text("run"), report=report)
        _check_parts(manifest, fields)
        if _ALIASES_HASH in values and values[_ALIASES_HASH] != _hash_of_names(manifest.aliases):
            raise fields.wrong("aliases", f"what its `{_ALIASES_HASH}` was computed from")
        return manifest


def hash_of(data: bytes) -> str:
    """`xxh3_128:<hex>` of `data`."""
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}"


def _hash_of_names(aliases: Mapping[str, str]) -> str:
    """The hash of the aliases: a damaged name could pass as another layer's. All other fields are verified anyway."""
    return hash_of(json.dumps(aliases, sort_keys=True, separators=(",", ":")).encode())


class _Fields:
    """Typed access to a JSON object; a wrong value raises CorruptWeights with the full name of its field."""

    def __init__(self, values: dict[str, Any], prefix: str, uri: str) -> None:
        self._values, self._prefix, self._uri = values, prefix, uri

    def wrong(self, name: str, expected: str) -> CorruptWeights:
        message = f"`{self._prefix}{name}` of the manifest is not {expected}; fetch it again, or quantize with --repair"
        return CorruptWeights(message, uri=self._uri)

    def text(self, name: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._values.get(name) is None else self.text(name)

    def number(self, name: str) -> int:
        value = self._values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(name, "a non-negative integer")
        return value

    def path(self, name: str) -> str:
        value = self.text(name)
        if not value or value.startswith("/") or ".." in value.split("/") or "\0" in value:
            raise self.wrong(name, "a path under the target")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value

    def texts(self, name: str) -> dict[str, str]:
        value = self.mapping(name)
        if not all(isinstance(one, str) for one in value.values()):
            raise self.wrong(name, "an object of strings")
        return value

    def record(self, name: str) -> _Fields:
        return _Fields(self.mapping(name), f"{self._prefix}{name}.", self._uri)

    def records(self, name: str) -> list[_Fields]:
        values = self._values.get(name)
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.wrong(name, "a list of objects")
        return [_Fields(value, f"{self._prefix}{name}[{i}].", self._uri) for i, value in enumerate(values)]


def _stored_file(fields: _Fields) -> StoredFile:
    return StoredFile(fields.path("path"), fields.number("nbytes"), fields.text("hash"))


def _part(fields: _Fields) -> ManifestPart:
    return ManifestPart(
        fields.path("path"),
        fields.number("shard"),
        fields.number("rows"),
        fields.number("nbytes"),
        fields.text("hash"),
    )


def _check_parts(manifest: Manifest, fields: _Fields) -> None:
    parts = manifest.parts
    if len({part.path for part in parts}) < len(parts) or len({part.shard for part in parts}) < len(parts):
        raise fields.wrong("parts", "a list of parts with distinct paths and shards")
    if sum(part.rows for part in parts) != manifest.totals.rows:
        raise fields.wrong("totals.rows", "the sum of its parts' rows")


@cache
def _versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("arrowquant-dist", "pyarrow", "numpy", "numba"):
        try:
            versions[name.replace("-", "_")] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout
            versions[name.replace("-", "_")] = "unknown"
    return versions
