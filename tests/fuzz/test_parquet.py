"""Parquet files that are larger than they look are refused before anything in them is expanded."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from arrowquant_dist.target.index import INDEX_SCHEMA, read_index
from tests.fuzz.bounded import arrowquant
from tests.fuzz.parquet_bombs import BOMBS, equal_values, many_rows, written

WHOLE_PROGRAM = [  # one of bytes and one of counts; test_a_bomb_is_refused_before_a_plan_is_made_of_it has all of them
    "20 GB of equal values",
    pytest.param("pages of 2 GB", marks=pytest.mark.slow),
    "9 million columns in a row group",
    pytest.param("pages of 2 billion values", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_a_plan_is_made_of_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(BOMBS[name]())
    with pytest.raises(InvalidCheckpoint) as caught:
        make_plan(open_checkpoint(str(path)), QuantizationConfig(), RunConfig())
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", WHOLE_PROGRAM)
def test_the_program_says_so_in_one_sentence_within_bounds(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(BOMBS[name]())
    ended = arrowquant("quantize", "x.parquet", "out", cwd=tmp_path)
    assert ended.is_one_sentence, ended
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"data_page_size": 10}]
)
@pytest.mark.parametrize("compression", ["none", "zstd", "snappy", "gzip"])
def test_what_other_writers_write_is_read_right(
    tmp_path: Path, compression: str, options: dict[str, object]
) -> None:
    random_ = np.random.default_rng(0)
    values = [random_.integers(0, 256, size, np.uint8) for size in (0, 1, 7, 4096, 4096, 100_000)]
    names = [f"block.{i}.weight" for i in range(len(values))]
    columns = {
        "layer_name": names,
        "shape": [[len(value)] for value in values],
        "dtype": ["uint8"] * len(values),
        "data": [value.tobytes() for value in values],
        "num_params": [len(value) for value in values],
    }
    path = tmp_path / "x.parquet"
    path.write_bytes(written(columns, compression=compression, row_group_size=4, **options))
    dataset = Dataset.open(str(path))
    for name, value in zip(names, values, strict=True):
        assert dataset.read_values(name, 0, len(value)).tobytes() == value.tobytes()


def test_equal_values_that_a_dictionary_has_once_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(equal_values(300, bytes(range(256)) * 100))
    assert path.stat().st_size < 20_000
    dataset = Dataset.open(str(path))
    assert len(dataset.layers) == 300
    assert dataset.read_values("layer299", 0, 25_600).tobytes() == bytes(range(256)) * 100


def test_an_index_is_bounded_in_the_same_way() -> None:
    with pytest.raises(CorruptWeights, match="at most"):
        read_index(many_rows(10**12))
    rows = 1000
    columns = {
        field.name: pa.nulls(rows, field.type).fill_null(_zero(field.type))
        for field in INDEX_SCHEMA
        if not pa.types.is_list(field.type)
    }
    columns |= {
        field.name: pa.array([[1]] * rows, field.type)
        for field in INDEX_SCHEMA
        if pa.types.is_list(field.type)
    }
    zeros = pa.array([0] * rows, pa.int32())
    columns["layer_name"] = pa.DictionaryArray.from_arrays(zeros, ["n" * 10_000_000])
    out = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns), out, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30
    )
    with pytest.raises(CorruptWeights, match="layer_name"):
        read_index(out.getvalue().to_pybytes())


def _zero(kind: pa.DataType) -> object:
    return "" if pa.types.is_string(kind) else 0


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)], ids=["quick", "many"])
def test_a_file_with_any_bytes_changed_is_one_error_or_the_same_rows(tmp_path: Path, count: int) -> None:
    good = equal_values(3, b"abcdefgh")
    path = tmp_path / "x.parquet"
    random_ = random.Random(5)  # noqa: S311
    for _ in range(count):
        data = bytearray(good)
        for _ in range(random_.choice([1, 1, 2, 8])):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(data)
        with suppress(ArrowQuantError):
            dataset = Dataset.open(str(path))
            for name, layer in dataset.layers.items():
                assert dataset.read_values(name, 0, layer.rows * layer.columns).size < 1 << 20
