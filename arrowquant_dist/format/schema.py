"""The Parquet schemas of V1 and V2 files, derived from the definition of a row."""

from __future__ import annotations

import pyarrow as pa

from arrowquant_dist.format.row import COLUMNS

SCHEMA_VERSION = "2"
VERSION_KEY = "arrowquant.schema_version"

V1_SCHEMA = pa.schema([column.field for column in COLUMNS if column.since == "1"], {VERSION_KEY: "1"})
V2_SCHEMA = pa.schema([column.field for column in COLUMNS], {VERSION_KEY: SCHEMA_VERSION})
