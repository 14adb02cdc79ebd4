"""Reads plans of version 1, as existing targets have them. Their encodings were text: `raw`, `dataset`, `strided:`
and a JSON list, or `scaled:` and the JSON of codes and places. They are never written, so nothing here changes any
more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import xxhash

from arrowquant_dist.columns import python_values
from arrowquant_dist.encodings.dataset import DATASET_ROWS
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.float8 import Float8Blocks
from arrowquant_dist.encodings.int8 import Int8
from arrowquant_dist.encodings.microscaled import Microscaled
from arrowquant_dist.encodings.packed import PackedInts
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.encodings.strided import Strided
from arrowquant_dist.encodings.transposed import TransposedMicroscaled
from arrowquant_dist.plan.rows import BATCH_ROWS, tuples
from arrowquant_dist.strict_json import parse_json

VERSION = 1
SCHEMA = pa.schema(
    [
        ("layer_name", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("num_params", pa.int64()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("encoding", pa.string()),
        ("layer_shape", pa.list_(pa.int64())),
        ("layer_offset", pa.int64()),
        ("layer_nbytes", pa.int64()),
        ("shard", pa.int32()),
        ("row_start", pa.int64()),
        ("rows", pa.int64()),
        ("quant_type", pa.string()),
        ("per_channel", pa.bool_()),
        ("group_size", pa.int64()),
        ("symmetric", pa.bool_()),
        ("method", pa.string()),
        ("integer_zero_points", pa.bool_()),
        ("row_dims", pa.int32()),
        ("keep_non_finite", pa.bool_()),
        ("kept_reason", pa.string()),
    ]
)
NO_REASONS = ""  # in place of the digest of the kept_reason column
# Metadata that version 1, or its first releases, did not write.
METADATA = {
    "arrowquant.kept_reasons": json.dumps(NO_REASONS).encode(),
    "arrowquant.code": b'""',
    "arrowquant.side_inputs": b"{}",
    "arrowquant.side_tensors": b"{}",
}
_SCHEMA_VERSION = "2"  # of V2
_LAYER = ("layer_name", "layer_shape", "dtype", "uri", "layer_offset", "layer_nbytes", "encoding")
_SPEC = (
    *("quant_type", "per_channel", "group_size", "symmetric"),
    *("method", "integer_zero_points", "row_dims", "keep_non_finite"),
)


def fingerprint(
    table: pa.Table, aliases: Mapping[str, str], files: Iterable[Mapping[str, Any]], compression: str
) -> str:
    """The fingerprint as version 1 computed it from the table's columns, which are trusted if it is the plan's own."""
    head = {
        "plan_version": VERSION,
        "schema_version": _SCHEMA_VERSION,
        "compression": compression,
        "aliases": dict(aliases),
        "files": sorted(files, key=lambda file: str(file["uri"])),
    }
    state = xxhash.xxh3_128(_json(head).encode())
    specs: dict[tuple[Any, ...], int] = {}  # numbered as they appear
    for shard, rows in groupby(_rows(table), key=itemgetter(0)):
        hashed = [
            [*layer, row_start, count, specs.setdefault(spec, len(specs))]
            for _, layer, row_start, count, spec in rows
        ]
        state.update(f"\n{_json([shard, hashed])}".encode())
    described = [dict(zip(_SPEC, spec, strict=True)) for spec in specs]
    state.update(f"\n{_json(described)}".encode())
    return f"xxh3_128:{state.hexdigest()}"


def read_encodings(batch: pa.RecordBatch) -> list[Encoding]:
    """The encodings of the rows; equal texts give one object. Raises ValueError or KeyError for invalid texts."""
    parsed = lru_cache(maxsize=None)(_encoding)
    texts, uris = python_values(batch.column("encoding")), python_values(batch.column("uri"))
    return [parsed(text, uri) for text, uri in zip(texts, uris, strict=True)]


def _rows(table: pa.Table) -> Iterator[tuple[int, tuple[Any, ...], int, int, tuple[Any, ...]]]:
    """(shard, values of _LAYER, row_start, rows, values of _SPEC) for each row."""
    for batch in table.to_batches(BATCH_ROWS):
        own = tuples(batch, ["shard", "row_start", "rows"])
        for (shard, row_start, count), layer, spec in zip(
            own, tuples(batch, _LAYER), tuples(batch, _SPEC), strict=True
        ):
            yield shard, layer, row_start, count, spec


def _encoding(text: str, uri: str) -> Encoding:
    """The encoding that a text describes. uri: of the layer, and of its scales unless the text names another."""
    if text == "raw":
        return RAW
    if text == "dataset":
        return DATASET_ROWS
    kind, _, described = text.partition(":")
    values = parse_json(described.encode())
    if kind == "strided":
        return Strided(tuple(values))
    if kind == "scaled":
        return _SCALED[values["codes"]](values, uri)
    raise ValueError(f"there is no encoding {kind!r}")


def _float8(values: Mapping[str, Any], uri: str) -> Encoding:
    return Float8Blocks(values["codes"], _block(values), _place(values["scales"], uri))


def _int8(values: Mapping[str, Any], uri: str) -> Encoding:
    return Int8(_block(values), *_places(values, uri))


def _packed(values: Mapping[str, Any], uri: str) -> Encoding:
    return PackedInts(int(values["codes"].removeprefix("packed")), _block(values), *_places(values, uri))


def _e2m1(values: Mapping[str, Any], uri: str) -> Encoding:
    kind = TransposedMicroscaled if values.get("transposed", False) else Microscaled
    return kind(_place(values["scales"], uri))


_SCALED: Mapping[str, Callable[[Mapping[str, Any], str], Encoding]] = {
    "float8_e4m3fn": _float8,
    "float8_e5m2": _float8,
    "int8": _int8,
    "packed2": _packed,
    "packed4": _packed,
    "packed8": _packed,
    "e2m1": _e2m1,
}


def _block(values: Mapping[str, Any]) -> tuple[int, int]:
    rows, columns = values["block"]
    return rows, columns


def _places(values: Mapping[str, Any], uri: str) -> tuple[Place, Place | None, Place | None]:
    """The places of scales, zero points and groups."""
    zero_points, groups = (_place(values[k], uri) if k in values else None for k in ("zero_points", "groups"))
    return _place(values["scales"], uri), zero_points, groups


def _place(described: Mapping[str, Any], uri: str) -> Place:
    shape = tuple(described["shape"])
    return Place(described.get("uri", uri), described["offset"], described["dtype"], shape)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
