"""Writes V1 as the tools that it comes from wrote it: with plain pyarrow, a row per tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    {
        "layer_name": pa.string(),
        "shape": pa.list_(pa.int32()),
        "dtype": pa.string(),
        "data": pa.binary(),
        "num_params": pa.int64(),
    }
)


def write_v1(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """metadata: metadata of the Parquet schema; files from before V2 often have none."""
    columns = {
        "layer_name": list(tensors),
        "shape": [list(t.shape) for t in tensors.values()],
        "dtype": [str(t.dtype) for t in tensors.values()],
        "data": [t.tobytes() for t in tensors.values()],
        "num_params": [t.size for t in tensors.values()],
    }
    pq.write_table(pa.table(columns, SCHEMA.with_metadata(metadata)), path)
