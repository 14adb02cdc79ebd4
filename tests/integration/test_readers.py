"""Other programs read the folder `target/weights` as it is, every row once, without knowing this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import xxhash

from tests.integration.conftest import Targets
from tests.integration.layers import read_layers

Rows = Any  # an iterable of {column: value}, whatever the library calls it
COLUMNS = ["layer_name", "shape", "dtype", "quant_type", "data", "scales", "zero_points", "checksum"]
LAYER = "encoder.layer.3.attention.self.query.weight"


def by_pyarrow(weights: Path, _: Path) -> Rows:
    return ds.dataset(weights, format="parquet", partitioning="hive").to_table().to_pylist()


def by_pandas(weights: Path, _: Path) -> Rows:
    return pd.read_parquet(weights).to_dict("records")


def by_duckdb(weights: Path, _: Path) -> Rows:
    with duckdb.connect() as connection:
        found = connection.sql(f"SELECT {', '.join(COLUMNS)}, shard FROM '{weights}/**/*.parquet'")  # noqa: S608
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def by_polars(weights: Path, _: Path) -> Rows:
    return pl.read_parquet(weights).to_dicts()


def by_polars_lazily(weights: Path, _: Path) -> Rows:
    return pl.scan_parquet(weights / "**/*.parquet", hive_partitioning=True).collect().to_dicts()


def by_datasets(weights: Path, cache: Path) -> Rows:
    from datasets import load_dataset

    files = str(weights / "**" / "*.parquet")
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache))


READERS = [by_pyarrow, by_pandas, by_duckdb, by_polars, by_polars_lazily, by_datasets]


def rows_of(weights: Path) -> dict[str, tuple[Any, ...]]:
    """Part by part, each file alone."""
    rows = {}
    for part in sorted(weights.rglob("*.parquet")):
        for row in pq.ParquetFile(part).read(COLUMNS).to_pylist():
            rows[row["layer_name"]] = plain(row)
    return rows


def plain(row: dict[str, Any]) -> tuple[Any, ...]:
    values = {**row, "shape": [int(n) for n in row["shape"]]}
    return tuple(bytes(v) if isinstance(v, bytes | bytearray) else v for v in map(values.get, COLUMNS))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("config", ["int8", "int2-asymmetric"])
def test_every_reader_finds_every_row_in_the_folder(
    targets: Targets,
    tmp_path: Path,
    reader: Callable[[Path, Path], Rows],
    config: str,
    weights: dict[str, np.ndarray],
) -> None:
    folder = targets[config] / "weights"
    rows = list(reader(folder, tmp_path))
    assert len(rows) == len(weights)
    assert {row["layer_name"]: plain(row) for row in rows} == rows_of(folder)


@pytest.mark.parametrize("reader", [by_pyarrow, by_pandas, by_duckdb, by_polars, by_polars_lazily])
def test_shards_are_a_hive_partition(
    int8: Path, tmp_path: Path, reader: Callable[[Path, Path], Rows]
) -> None:
    found = {int(row["shard"]) for row in reader(int8 / "weights", tmp_path)}
    assert found == set(range(len(list((int8 / "weights").iterdir()))))
    assert len(found) > 1


@pytest.mark.parametrize("config", ["int8", "int2-asymmetric"])
def test_checksums_are_what_the_format_says(targets: Targets, config: str) -> None:
    for part in (targets[config] / "weights").rglob("*.parquet"):
        for row in pq.ParquetFile(part).read().to_pylist():
            chunks = [row["data"][i : i + (1 << 20)] for i in range(0, len(row["data"]), 1 << 20)]
            assert row["chunk_digests"] == b"".join(xxhash.xxh3_128(chunk).digest() for chunk in chunks)
            whole = row["chunk_digests"] + row["scales"] + row["zero_points"]
            assert row["checksum"] == f"xxh3_128:{xxhash.xxh3_128(whole).hexdigest()}"


MACROS = """
CREATE MACRO byte_at(b, i) AS ('0x' || hex(b[i + 1 : i + 1]))::INT;
CREATE MACRO float_at(b, i) AS (unhex(
    hex(b[4*i + 4 : 4*i + 4]) || hex(b[4*i + 3 : 4*i + 3]) || hex(b[4*i + 2 : 4*i + 2]) || hex(b[4*i + 1 : 4*i + 1])
)::BIT)::FLOAT;
"""
INT8_ROW = """
SELECT [((byte_at(codes, c) + 128) % 256 - 128) * float_at(scales, r) FOR c IN range(n)]
FROM (SELECT $row AS r, shape[2] AS n, scales, data[$row * shape[2] + 1 : ($row + 1) * shape[2]] AS codes
      FROM '{weights}/**/*.parquet' WHERE layer_name = $layer)
"""
INT2_ROW = """
SELECT [(((byte_at(codes, c // 4) >> (2 * (c % 4))) & 3) - 2 - float_at(zeros, c // group_size))
        * float_at(scales, c // group_size) FOR c IN range(n)]
FROM (SELECT shape[2] AS n, group_size, (shape[2] + group_size - 1) // group_size AS groups,
             data[$row * (shape[2] // 4) + 1 : ($row + 1) * (shape[2] // 4)] AS codes,
             scales[4 * groups * $row + 1 : 4 * groups * ($row + 1)] AS scales,
             zero_points[4 * groups * $row + 1 : 4 * groups * ($row + 1)] AS zeros
      FROM '{weights}/**/*.parquet' WHERE layer_name = $layer)
"""


@pytest.mark.parametrize(("config", "query"), [("int8", INT8_ROW), ("int2-asymmetric", INT2_ROW)])
@pytest.mark.parametrize("row", [0, 7, 383])
def test_duckdb_dequantizes_a_row_by_the_published_formula(
    targets: Targets, weights: dict[str, np.ndarray], config: str, query: str, row: int
) -> None:
    with duckdb.connect() as connection:
        connection.execute(MACROS)
        sql = query.format(weights=targets[config] / "weights")
        ((values,),) = connection.execute(sql, {"row": row, "layer": LAYER}).fetchall()
    np.testing.assert_allclose(values, read_layers(targets[config])[LAYER].values[row], rtol=1e-6, atol=1e-9)
    original = weights[LAYER][row]
    assert np.abs(np.array(values) - original).max() < np.abs(original).max()
