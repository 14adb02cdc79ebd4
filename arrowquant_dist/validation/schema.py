"""Checks V1 and V2 files with pyarrow alone: their schemas, and that the loader returns the values that are in them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import RunConfig, Storage
from arrowquant_dist.errors import ArrowQuantError, counted, listed
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.report import text
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.layout import WEIGHTS_FOLDER
from arrowquant_dist.validation.figures import (
    FAILED,
    NOT_MEASURED,
    PASSED,
    SCHEMA,
    Check,
    LoadTime,
    SourceFigures,
    Status,
)
from arrowquant_dist.validation.loading import dataset_load
from arrowquant_dist.validation.source import OpenSource, opened_source
from arrowquant_dist.validation.telling import ValidationTeller

V1_READ, V2_WRITE, V2_TO_V1 = "V1 is read", "V2 is written", "V2 becomes V1"
_VERSION_KEY = b"arrowquant.schema_version"
_BINARY = (pa.binary(), pa.large_binary())
# The published columns and their types, in file order. Deliberately not imported from the code that writes them.
V1_COLUMNS: dict[str, tuple[pa.DataType, ...]] = {
    "layer_name": (pa.string(),),
    "shape": (pa.list_(pa.int32()),),
    "dtype": (pa.string(),),
    "data": _BINARY,
    "num_params": (pa.int64(),),
}
V2_COLUMNS: dict[str, tuple[pa.DataType, ...]] = {
    **V1_COLUMNS,
    "quant_type": (pa.string(),),
    "scales": _BINARY,
    "zero_points": _BINARY,
    "quant_axis": (pa.int32(),),
    "group_size": (pa.int32(),),
}
_V1_SCHEMA = pa.schema(
    [pa.field(name, types[0]) for name, types in V1_COLUMNS.items()], {_VERSION_KEY.decode(): "1"}
)
_MAX_VALUE_NBYTES = (1 << 31) - 1  # largest value in Parquet
_ROOM = 1.1  # free space required, as a multiple of the temporary file's size


def check_v1_read(
    source: str, storage: Storage, figures: SourceFigures, folder: Path
) -> tuple[Check, LoadTime | None]:
    """Writes the source's values to a V1 file with pyarrow, and checks that version, layers and values are read back.
    Returns the check and the file's load time, which is None if no file was written. folder: empty folder for the
    file."""
    with opened_source(source, storage) as opened:
        reason = _why_no_copy(opened, figures, folder)
        if reason:
            return Check(SCHEMA, V1_READ, "", NOT_MEASURED, reason), None
        path = folder / "source.parquet"
        digests = _write_v1(opened, path)
        shapes = {layer.name: layer.shape for layer in opened.checkpoint.layers}
    found = open_checkpoint(str(path))
    wrong = []
    if found.format != "v1":
        wrong.append(f"it is recognized as {found.format}")
    if {layer.name: layer.shape for layer in found.layers} != shapes:
        wrong.append("its layers differ from the source's")
    wrong += _differences(digests, str(path), Storage(), "of the file")
    load = dataset_load("V1", str(path), Storage(), verified=False)
    path.unlink()
    size = text.nbytes(figures.nbytes)
    said = f"{counted(len(digests), 'layer')} in a V1 file that pyarrow wrote ({size}): version, layers and each value"
    return _check(V1_READ, "", wrong, said), load


def check_v2_write(name: str, target: str, storage: Storage) -> Check:
    """Checks columns, types, version and rows of all parts."""
    store = open_store(target, storage)
    wrong: list[str] = []
    layers: set[str] = set()
    rows = scaled = 0
    others: list[str] = []
    paths = [info.path for info in store.list(WEIGHTS_FOLDER)]
    for path in paths:
        file = pq.ParquetFile(store.open_reader(path))
        schema = file.schema_arrow
        wrong += _wrong_columns(schema, V2_COLUMNS, b"2")
        others = [column for column in schema.names if column not in V2_COLUMNS]
        if wrong:
            break
        table = file.read(columns=["layer_name", "quant_type", "scales"])
        layers.update(table["layer_name"].to_pylist())
        rows += table.num_rows
        has_scales = pc.greater(pc.binary_length(table["scales"]), 0)
        has_codes = pc.starts_with(table["quant_type"], "int")
        scaled += int(pc.sum(has_codes).as_py() or 0)
        if not pc.all(pc.equal(has_scales, has_codes)).as_py():
            wrong.append("some rows with codes have no scales, or rows without codes have some")
    if not paths:
        wrong.append("there are no parts")
    named = ", ".join(list(V2_COLUMNS)[len(V1_COLUMNS) :])
    counts = f"{counted(len(paths), 'part')}, {counted(rows, 'row')} of {counted(len(layers), 'layer')}"
    said = (
        f"{counts}, {scaled} with codes: V1's columns, then {named}, and {', '.join(others) or 'no others'}"
    )
    return _check(V2_WRITE, name, wrong, said)


def check_v2_to_v1(
    name: str, target: str, run: RunConfig, nbytes: int, folder: Path, teller: ValidationTeller
) -> Check:
    """Exports the dataset as V1, and compares each value in those files with what the loader returns. nbytes: size of
    all values."""
    free = shutil.disk_usage(folder).free
    if free < _ROOM * nbytes:
        reason = f"it needs {text.nbytes(nbytes)} for temporary files, but only {text.nbytes(free)} is free (TMPDIR)"
        return Check(SCHEMA, V2_TO_V1, name, NOT_MEASURED, reason)
    storage = run.target_storage
    local = RunConfig(
        engine="inline", workers=run.workers, transfer=run.transfer, source_storage_options=storage.options
    )
    out = folder / f"{name}-v1"
    try:
        export_dataset(target, out, ExportOptions("v1"), local, progress=teller.of_run(f"{name}: as V1"))
    except ArrowQuantError as error:
        if error.exit_code != 2:
            raise
        return Check(SCHEMA, V2_TO_V1, name, NOT_MEASURED, f"V1 cannot hold it: {error}")
    wrong: list[str] = []
    digests: dict[str, str] = {}
    for path in sorted(out.glob("**/*.parquet")):
        file = pq.ParquetFile(path)
        wrong += _wrong_columns(file.schema_arrow, V1_COLUMNS, b"1", exactly=True)
        digests.update(_digests_of(file))
    wrong += _differences(digests, target, storage, "of the V1 files")
    shutil.rmtree(out)
    said = f"{counted(len(digests), 'layer')} in V1's five columns, read by pyarrow: each value equals the loader's"
    return _check(V2_TO_V1, name, wrong, said)


def _why_no_copy(opened: OpenSource, figures: SourceFigures, folder: Path) -> str:
    large = [one.name for one in opened.checkpoint.layers if one.source_nbytes > _MAX_VALUE_NBYTES]
    if large:
        return f"{listed(large)}: too large for a single Parquet value, in which V1 stores a layer"
    free = shutil.disk_usage(folder).free
    if free < _ROOM * figures.nbytes:
        needed = text.nbytes(figures.nbytes)
        return (
            f"its V1 file needs {needed} for temporary files, but only {text.nbytes(free)} is free (TMPDIR)"
        )
    return ""


def _write_v1(opened: OpenSource, path: Path) -> dict[str, str]:
    """Writes one row for each layer with pyarrow. Returns {layer: digest of its values}."""
    digests = {}
    with pq.ParquetWriter(path, _V1_SCHEMA, compression="none") as writer:
        for layer in opened.checkpoint.layers:
            data = b"".join(piece.tobytes() for piece in opened.pieces(layer))
            digests[layer.name] = xxhash.xxh3_128_hexdigest(data)
            row = [[layer.name], [list(layer.shape)], [layer.dtype], [data], [layer.num_params]]
            arrays = [pa.array(value, field.type) for value, field in zip(row, _V1_SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=_V1_SCHEMA))
    return digests


def _digests_of(file: pq.ParquetFile) -> Iterator[tuple[str, str]]:
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["layer_name", "data"])
        for name, data in zip(table["layer_name"].to_pylist(), table["data"].to_pylist(), strict=True):
            yield name, xxhash.xxh3_128_hexdigest(data)


def _differences(digests: Mapping[str, str], uri: str, storage: Storage, whose: str) -> list[str]:
    """How the names and values that the loader reads from `uri` differ from `digests`, {layer: digest of its values}.
    whose: where the digests are from, for the messages."""
    import torch

    different: list[str] = []
    with WeightLoader(uri, storage_options=storage.options, transfer=storage.transfer) as loader:
        names = set(loader.keys())
        for name, tensor in loader:
            found = xxhash.xxh3_128_hexdigest(tensor.reshape(-1).view(torch.uint8).numpy().data)
            if name in digests and found != digests[name]:
                different.append(name)
    wrong = [f"values differ from those {whose}: {listed(different)}"] if different else []
    if names != digests.keys():
        wrong.append(f"names differ from those {whose}: {listed(sorted(names ^ digests.keys()))}")
    return wrong


def _wrong_columns(
    schema: pa.Schema,
    columns: Mapping[str, tuple[pa.DataType, ...]],
    version: bytes,
    *,
    exactly: bool = False,
) -> list[str]:
    names = schema.names if exactly else schema.names[: len(columns)]
    if names != list(columns):
        return [f"its columns are {', '.join(schema.names)}"]
    wrong = [
        f"{name} is {schema.field(name).type}"
        for name, types in columns.items()
        if schema.field(name).type not in types
    ]
    said = (schema.metadata or {}).get(_VERSION_KEY)
    return wrong if said == version else [*wrong, f"its schema version is {said!r}"]


def _check(name: str, config: str, wrong: list[str], said: str) -> Check:
    status: Status = FAILED if wrong else PASSED
    return Check(SCHEMA, name, config, status, "; ".join(dict.fromkeys(wrong)) or said)
