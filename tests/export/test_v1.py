"""V1 files can be read by V1's readers: pyarrow, DuckDB, polars, and our own."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.export import ExportOptions, export_dataset
from tests.export.datasets import loaded, made_dataset, same
from tests.integration.v1 import SCHEMA
from tests.sources import random_weights

RUN = RunConfig(engine="inline", workers=2)
TENSORS = {
    **random_weights(3, 256, 512, torch.float32),  # 512 KiB each: two in a row group
    "large.weight": torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1)),
    "half.weight": torch.full((3, 5), 0.5, dtype=torch.bfloat16),
    "steps": torch.tensor(7, dtype=torch.int64),
    "nothing": torch.zeros(0, 4),
    "mask": torch.tensor([True, False, True]),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_dataset(tmp_path_factory.mktemp("v1"), TENSORS, QuantizationConfig("int8"))


@pytest.fixture(scope="module", params=["1GiB", "1MiB"])
def out(request: pytest.FixtureRequest, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "v1"
    export_dataset(dataset, str(folder), ExportOptions("v1", max_file_bytes=request.param), RUN)
    return folder


def rows_of(out: Path) -> list[dict[str, object]]:
    return [row for file in sorted((out / "weights").iterdir()) for row in pq.read_table(file).to_pylist()]


def test_pyarrow_reads_each_layer_s_values(dataset: str, out: Path) -> None:
    expected = loaded(dataset)
    rows = {row["layer_name"]: row for row in rows_of(out)}
    assert rows.keys() == expected.keys()
    for name, tensor in expected.items():
        row = rows[name]
        assert row["shape"] == list(tensor.shape)
        assert row["dtype"] == str(tensor.dtype).removeprefix("torch.")
        assert row["num_params"] == math.prod(tensor.shape)
        assert row["data"] == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_files_have_v1_s_columns_and_types(out: Path) -> None:
    for file in (out / "weights").iterdir():
        found = pq.read_schema(file)
        assert [*zip(found.names, map(str, found.types), strict=True)] == [
            (field.name, str(field.type).replace("item", "element")) for field in SCHEMA
        ]
        assert found.metadata[b"arrowquant.schema_version"] == b"1"


def test_our_reader_opens_it_as_v1(dataset: str, out: Path) -> None:
    with WeightLoader(str(out)) as loader:
        assert same({name: loader[name] for name in TENSORS}, loaded(dataset))


def test_duckdb_and_polars_read_the_same(out: Path) -> None:
    expected = {row["layer_name"]: row["data"] for row in rows_of(out)}
    files = f"{out}/weights/*.parquet"
    found = duckdb.sql(f"select layer_name, data from read_parquet('{files}')").fetchall()  # noqa: S608
    assert dict(found) == expected
    frame = polars.read_parquet(files)
    assert dict(zip(frame["layer_name"], frame["data"], strict=True)) == expected


def test_large_rows_have_a_row_group_of_their_own(out: Path) -> None:
    for file in (out / "weights").iterdir():
        metadata = pq.ParquetFile(file).metadata
        for group in range(metadata.num_row_groups):
            rows = pq.ParquetFile(file).read_row_group(group, columns=["data"]).column("data").to_pylist()
            assert len(rows) == 1 or max(map(len, rows)) < 1 << 20


def test_a_layer_beyond_a_parquet_value_is_refused_by_name(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        StoredLayer, "source_nbytes", property(lambda layer: (3 << 30) * (layer.name == "large.weight"))
    )
    with pytest.raises(InvalidConfig, match=r"large\.weight: larger than a value of Parquet.*safetensors"):
        export_dataset(dataset, str(tmp_path / "out"), ExportOptions("v1"), RUN)
    assert not (tmp_path / "out").exists()


def test_values_of_a_layer_in_many_row_blocks_follow_each_other(dataset: str, out: Path) -> None:
    row = next(row for row in rows_of(out) if row["layer_name"] == "large.weight")
    data = row["data"]
    assert isinstance(data, bytes)
    assert np.array_equal(
        np.frombuffer(data, "<f4").reshape(1024, 1024), loaded(dataset)["large.weight"].numpy()
    )
