"""Converts row blocks to rows of the plan's table, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from operator import attrgetter
from typing import Any

import pyarrow as pa

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.columns import arrow_batch, python_values
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.config.spec import LATER_FIELDS
from arrowquant_dist.encodings.columns import encoding_columns, encoding_fields
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.plan.blocks import RowBlock, Shard

# The spec's fields, stored in columns of the same names.
_SPEC_FIELDS = [
    ("quant_type", pa.string()),
    ("per_channel", pa.bool_()),
    ("group_size", pa.int64()),
    ("symmetric", pa.bool_()),
    ("method", pa.string()),
    ("integer_zero_points", pa.bool_()),
    ("row_dims", pa.int32()),
    ("keep_non_finite", pa.bool_()),
]
# The columns that every plan has; those of its encodings follow (encodings/columns.py). shape, num_params, offset
# and nbytes are the block's own, `layer_…` those of the whole layer. If a block's bytes are not a contiguous range
# of their own, offset and nbytes are the layer's.
BLOCK_SCHEMA = pa.schema(
    [
        ("layer_name", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("num_params", pa.int64()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("layer_shape", pa.list_(pa.int64())),
        ("layer_offset", pa.int64()),
        ("layer_nbytes", pa.int64()),
        ("shard", pa.int32()),
        ("row_start", pa.int64()),
        ("rows", pa.int64()),
        *_SPEC_FIELDS,
        ("kept_reason", pa.string()),
    ]
)
# Columns that come between those and the encodings', present if some spec has a value that earlier releases did not
# have: all columns of a line, or none. A release that does not know them finds columns other than its own and refuses
# the plan.
LATER_COLUMNS = (
    (pa.field("scale_dtype", pa.string()),),
    (
        pa.field("step", pa.float64()),
        pa.field("row_exponent", pa.float64()),
        pa.field("rate", pa.float64()),
    ),
)
BATCH_ROWS = 1 << 14  # bounds the number of Python objects held at a time
_LAYER_COLUMNS = ("layer_name", "layer_shape", "dtype", "uri", "layer_offset", "layer_nbytes")
_BLOCK_COLUMNS = ("shard", "row_start", "rows", "kept_reason")
_spec_values = attrgetter(*(name for name, _ in _SPEC_FIELDS))

ReadEncodings = Callable[[pa.RecordBatch], Sequence[Encoding]]  # of each row


def write_rows(shards: Iterable[Shard], shown: Callable[[str], str]) -> pa.Table:
    """One row per block, in order. shown: removes from a URI what may be secret."""
    shards = list(shards)
    specs = {block.spec for shard in shards for block in shard.blocks}
    later = [column for columns in LATER_COLUMNS if _is_used(columns, specs) for column in columns]
    known = [*BLOCK_SCHEMA, *later]
    later_values = [attrgetter(f"spec.{column.name}") for column in later]
    used = {type(block.layer.encoding) for shard in shards for block in shard.blocks}
    encoded = encoding_fields(used)
    schema = pa.schema([*known, *encoded])
    numbered = ((shard.index, block) for shard in shards for block in shard.blocks)
    batches = []
    while some := list(islice(numbered, BATCH_ROWS)):
        rows = [
            (*_row(shard, block, shown), *(value(block) for value in later_values)) for shard, block in some
        ]
        encodings = [block.layer.encoding for _, block in some]
        columns = [*zip(*rows, strict=True)]
        columns.extend(map(tuple, encoding_columns(encodings, encoded, shown)))
        batches.append(arrow_batch(columns, schema))
    return pa.Table.from_batches(batches, schema)


def read_shards(table: pa.Table, read_encodings: ReadEncodings) -> tuple[Shard, ...]:
    """The shards in a table with the columns of BLOCK_SCHEMA, or those that it had when the table was written;
    missing fields of a spec get their defaults. Blocks of one layer share their Layer, and equal specs are one
    object.

    Raises what `read_encodings` raises.
    """
    spec_columns = [f.name for f in fields(QuantSpec) if f.name in table.schema.names]
    specs: dict[tuple[Any, ...], QuantSpec] = {}
    layers: dict[str, Layer] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    shards: dict[int, list[RowBlock]] = {}
    for batch in table.to_batches(BATCH_ROWS):
        for spec_row, layer_row, encoding, (shard, row_start, rows, reason) in zip(
            tuples(batch, spec_columns),
            tuples(batch, _LAYER_COLUMNS),
            read_encodings(batch),
            tuples(batch, _BLOCK_COLUMNS),
            strict=True,
        ):
            spec = specs.get(spec_row)
            if spec is None:
                spec = specs[spec_row] = QuantSpec(**dict(zip(spec_columns, spec_row, strict=True)))
            name, shape, dtype, uri, offset, nbytes = layer_row
            layer = layers.get(name) if row_start else None
            if layer is None:
                whole = shapes.setdefault(tuple(shape), tuple(shape))
                layer = layers[name] = Layer(name, whole, dtype, uri, offset, nbytes, encoding)
            blocks = shards.get(shard)
            if blocks is None:
                blocks = shards[shard] = []
            blocks.append(RowBlock(layer, spec, row_start, rows, reason))
    return tuple(Shard(index, tuple(blocks)) for index, blocks in shards.items())


def later_columns(names: Collection[str]) -> list[pa.Field]:
    """The columns of LATER_COLUMNS that belong in a table with these columns, by the first one of each line."""
    return [column for columns in LATER_COLUMNS if columns[0].name in names for column in columns]


def _is_used(columns: Iterable[pa.Field], specs: Iterable[QuantSpec]) -> bool:
    return any(
        getattr(spec, column.name) != LATER_FIELDS[column.name] for spec in specs for column in columns
    )


def tuples(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of the given columns."""
    columns = [batch.column(name) for name in names]
    # Layer names hardly repeat: looking for equal ones would cost more than it saves.
    values = [
        list(column.to_pylist()) if name == "layer_name" else python_values(column)
        for name, column in zip(names, columns, strict=True)
    ]
    return zip(*values, strict=True)


def _row(shard: int, block: RowBlock, shown: Callable[[str], str]) -> tuple[Any, ...]:
    """The block as a row of BLOCK_SCHEMA."""
    layer, columns = block.layer, block.columns
    start, stop = block.row_start * columns, (block.row_start + block.rows) * columns
    stored = layer.encoding.byte_range(layer, start, stop)
    values = (layer.name, block.shape, layer.dtype, stop - start)
    place = (shown(layer.uri), stored.start, stored.nbytes)
    whole = (layer.shape, layer.offset, layer.nbytes, shard, block.row_start, block.rows)
    return (*values, *place, *whole, *_spec_values(block.spec), block.kept_reason)
