"""Writes layers.parquet: the metrics of all layers, one row per layer."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_dist.columns import arrow_batch
from arrowquant_dist.reduce.figures import is_measured
from arrowquant_dist.reduce.layers import LayerMetrics
from arrowquant_dist.reduce.ratios import finite

LAYERS_SCHEMA = pa.schema(
    [
        pa.field("layer_name", pa.string(), nullable=False),
        pa.field("layer_type", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("quant_type", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("quant_axis", pa.int32(), nullable=False),
        pa.field("group_size", pa.int32(), nullable=False),
        pa.field("row_blocks", pa.int64(), nullable=False),
        pa.field("params", pa.int64(), nullable=False),
        pa.field("source_nbytes", pa.int64(), nullable=False),
        pa.field("data_nbytes", pa.int64(), nullable=False),
        pa.field("scales_nbytes", pa.int64(), nullable=False),
        pa.field("zero_points_nbytes", pa.int64(), nullable=False),
        pa.field("stored_nbytes", pa.int64(), nullable=False),
        pa.field("kept_reason", pa.string()),
        pa.field("cosine", pa.float64()),
        pa.field("precision_loss", pa.float64()),
        pa.field("mse", pa.float64()),
        pa.field("sqnr_db", pa.float64()),
        pa.field("max_error", pa.float64()),
        pa.field("non_finite", pa.string()),
    ],
    {"arrowquant.layers_version": "1"},
)
_FIGURES = ("cosine", "precision_loss", "mse", "sqnr_db", "max_error")


def layers_parquet(layers: Sequence[LayerMetrics], run: str = "") -> bytes:
    """The file's bytes. Figures that a layer does not have are null, and so is sqnr_db if nothing was lost. non_finite
    counts the values that are not finite, such as `3 NaN, 1 -inf`; it is null if all are finite.

    run: the run's id, which goes into the schema's metadata.
    """
    measured = [
        layer.errors if layer.errors is not None and is_measured(layer.errors) else None for layer in layers
    ]
    non_finite = [layer.errors.non_finite or None if layer.errors is not None else None for layer in layers]
    columns = [
        non_finite
        if name == "non_finite"
        else [None if errors is None else finite(getattr(errors, name)) for errors in measured]
        if name in _FIGURES
        else [getattr(layer, name) for layer in layers]
        for name in LAYERS_SCHEMA.names
    ]
    table = pa.Table.from_batches([arrow_batch(columns, LAYERS_SCHEMA)])
    buffer = io.BytesIO()
    whose = {**LAYERS_SCHEMA.metadata, "arrowquant.run": run}
    pq.write_table(table.replace_schema_metadata(whose), buffer, compression="zstd")
    return buffer.getvalue()
