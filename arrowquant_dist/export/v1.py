"""The format `v1`: decoded values in Parquet files with V1's five columns, one row per layer.

Files are written like parts (format/parquet/part.py): one page per value, uncompressed, so that its size is known
before its bytes and it is streamed after its header; large rows have a row group of their own, small ones share one. A
tied tensor has a row for each of its names, since V1 has no aliases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pyarrow as pa

from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig, listed
from arrowquant_dist.export.decoded import DecodedValues
from arrowquant_dist.export.files import OutputFile, shares_of
from arrowquant_dist.export.format import ExportDraft, Model, OutputFiles
from arrowquant_dist.export.tensors import LayerExport, OutputTensor
from arrowquant_dist.export_names import MARK_KEY
from arrowquant_dist.format.parquet import pages
from arrowquant_dist.format.parquet.part import BIG_VALUE_NBYTES, GROUP_NBYTES
from arrowquant_dist.format.row import COLUMNS, BlobColumn
from arrowquant_dist.format.schema import V1_SCHEMA, VERSION_KEY
from arrowquant_dist.target.layout import WEIGHTS_FOLDER

_COLUMNS = tuple(column for column in COLUMNS if column.since == "1")
_CREATED_BY = "arrowquant-dist"  # without a version: only the mark decides the bytes


@dataclass(frozen=True, slots=True)
class V1Values(DecodedValues):
    """The same values, with dtypes under V1's names, which are torch's."""

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        return (OutputTensor(name, self.dtype, shape, math.prod(shape) * DTYPES[self.dtype].itemsize),)


@dataclass(frozen=True, slots=True)
class V1Parquet:
    name: ClassVar[str] = "v1"

    def draft(self, model: Model) -> ExportDraft:
        large = [n for n, stored in model.names.items() if stored.source_nbytes > pages.MAX_VALUE_NBYTES]
        if large:
            message = f"{listed(large)}: larger than a value of Parquet may be (2 GiB), and V1 stores a layer in one"
            raise InvalidConfig(f"{message}; export as safetensors", uri=model.dataset.uri)
        layers = (
            LayerExport(name, stored.name, stored.shape, 0, stored.rows, V1Values(stored.dtype))
            for name, stored in model.names.items()
        )
        return ExportDraft(tuple(layers))

    def files(self, _model: Model, draft: ExportDraft, mark: str, max_file_nbytes: int) -> OutputFiles:
        sizes = [layer.tensors[0].nbytes for layer in draft.layers]
        shares = shares_of(sizes, max_file_nbytes)
        files = []
        for number, share in enumerate(shares):
            several = f"-{number + 1:05d}-of-{len(shares):05d}" if len(shares) > 1 else ""
            path, layers = (
                f"{WEIGHTS_FOLDER}/model{several}.parquet",
                tuple(draft.layers[index] for index in share),
            )
            files.append(OutputFile(number, path, layers, _literals(layers, mark)))
        return OutputFiles(tuple(files))


def _literals(layers: Sequence[LayerExport], mark: str) -> tuple[bytes, ...]:
    """Returns everything in a file except its values: what precedes each of them, and what follows the last one."""
    literals: list[bytes] = []
    waiting, offset = pages.MAGIC, 0  # bytes before the next value, and the number of bytes before these
    groups: list[pages.RowGroup] = []
    for group in _groups(layers):
        chunks: list[pages.ColumnChunk] = []
        for column in _COLUMNS:
            start = offset + len(waiting)
            if isinstance(column, BlobColumn):
                for layer in group:
                    value_nbytes = layer.tensors[0].nbytes
                    prefix = pages.blob_prefix(value_nbytes)
                    page_nbytes = len(prefix) + value_nbytes
                    literals.append(waiting + pages.page_header(1, page_nbytes, page_nbytes, None) + prefix)
                    offset += len(literals[-1]) + value_nbytes
                    waiting = b""
                chunk = pages.ColumnChunk(
                    column.name, start, offset - start, offset - start, len(group), "none"
                )
            else:
                page, chunk = pages.small_page(column, [_small_value(column.name, layer) for layer in group])
                waiting += page
            chunks.append(replace(chunk, offset=start))
        groups.append(pages.RowGroup(len(group), tuple(chunks)))
    literals.append(waiting + pages.footer(groups, _CREATED_BY, _schema(mark)))
    return tuple(literals)


def _groups(layers: Sequence[LayerExport]) -> Iterator[list[LayerExport]]:
    """Yields large rows alone, and groups of neighbouring rows of some MiB."""
    pending: list[LayerExport] = []
    for layer in layers:
        nbytes = layer.tensors[0].nbytes
        if nbytes >= BIG_VALUE_NBYTES and pending:
            yield pending
            pending = []
        pending.append(layer)
        if nbytes >= BIG_VALUE_NBYTES or sum(one.tensors[0].nbytes for one in pending) >= GROUP_NBYTES:
            yield pending
            pending = []
    if pending:
        yield pending


def _small_value(column: str, layer: LayerExport) -> object:
    tensor = layer.tensors[0]
    values = {
        "layer_name": layer.name,
        "shape": layer.shape,
        "dtype": tensor.dtype,
        "num_params": math.prod(layer.shape),
    }
    return values[column]


def _schema(mark: str) -> pa.Schema:
    """Returns the schema, in which `data` is binary instead of large_binary: V1's readers know the former."""
    schema = V1_SCHEMA
    place = schema.get_field_index("data")
    return schema.set(place, schema.field(place).with_type(pa.binary())).with_metadata(
        {VERSION_KEY: "1", MARK_KEY: mark}
    )
