"""A plan as an Arrow table: what is in it, that it comes back whole, and what is refused."""

from __future__ import annotations

import json
import math

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, InvalidCheckpoint
from arrowquant_dist.plan import (
    make_plan,
    plan_from_table,
    plan_table,
)
from tests.plan.plan_bytes import read_again, written
from tests.plan.plan_sources import CONFIGS, RUNS, checkpoint, checkpoints

CONFIG = QuantizationConfig("int4", per_channel=False, mixed_precision_layers=["embed", "lm_head"])
PLAN = make_plan(
    checkpoint({"embed": (3000, 200), "w": (1000, 200), "norm": (200,)}, aliases={"tied": "embed"}),
    CONFIG,
    RunConfig(block_bytes=1 << 20),
)


@settings(deadline=None, max_examples=150)
@given(checkpoints(), CONFIGS, RUNS)
def test_a_plan_comes_back_from_its_table_and_its_bytes_whole(
    source: Checkpoint, config: QuantizationConfig, run: RunConfig
) -> None:
    plan = make_plan(source, config, run)
    assert plan_from_table(plan_table(plan)) == plan
    data = written(plan)
    assert read_again(data) == plan
    assert written(read_again(data)) == data


def test_the_table_is_a_layer_table_with_a_row_for_each_block() -> None:
    table = plan_table(PLAN)
    assert table.schema.names[:7] == [
        *("layer_name", "shape", "dtype", "num_params"),
        *("uri", "offset", "nbytes"),
    ]
    rows = table.to_pylist()
    assert len(rows) == len(list(PLAN.blocks)) > 3
    for row, block in zip(rows, PLAN.blocks, strict=True):
        assert (row["layer_name"], tuple(row["shape"])) == (block.layer.name, block.shape)
        assert row["nbytes"] == 4 * row["num_params"] == 4 * math.prod(row["shape"])
        assert row["offset"] == block.layer.offset + 4 * block.value_range[0]


def test_the_metadata_says_where_the_plan_is_from_and_what_was_asked() -> None:
    metadata = {k.decode(): json.loads(v) for k, v in plan_table(PLAN).schema.metadata.items()}
    assert metadata["arrowquant.fingerprint"] == PLAN.fingerprint
    assert metadata["arrowquant.config"]["mixed_precision_layers"] == ["embed", "lm_head"]
    assert metadata["arrowquant.config"]["run"]["block_bytes"] == 1 << 20
    assert metadata["arrowquant.aliases"] == {"tied": "embed"}
    assert metadata["arrowquant.sidecars"] == ["config.json"]
    assert metadata["arrowquant.compression"] == "zstd"
    assert metadata["arrowquant.notes"] == ["mixed_precision_layers: 'lm_head' matches no layer"]
    assert metadata["arrowquant.source"]["files"][0]["version"] == "v1"


def test_duckdb_reads_the_table() -> None:
    query = (
        "select layer_name, sum(num_params)::bigint, any_value(kept_reason) from plan group by 1 order by 1"
    )
    connection = duckdb.connect()
    connection.register("plan", plan_table(PLAN))
    found = connection.execute(query).fetchall()
    assert found == [
        ("embed", 600_000, "mixed_precision_layers: embed"),
        ("norm", 200, "1-D"),
        ("w", 200_000, None),
    ]


def _with_metadata(table: pa.Table, name: str, value: object) -> pa.Table:
    return table.replace_schema_metadata(
        {**table.schema.metadata, f"arrowquant.{name}".encode(): json.dumps(value)}
    )


def _with_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.names.index(name), field, pa.array(values, field.type))


_TABLE = plan_table(PLAN)
_ROWS = _TABLE.num_rows


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_TABLE.replace_schema_metadata({}), "metadata is damaged"),
        (
            _TABLE.replace_schema_metadata({**_TABLE.schema.metadata, b"arrowquant.source": b"{"}),
            "metadata is damaged",
        ),
        (_TABLE.drop_columns(["rows"]), "other columns"),
        (_with_column(_TABLE, "rows", [None] * _ROWS), "empty cells"),
        (_with_column(_TABLE, "rows", [1] * _ROWS), "fingerprint"),
        (_with_column(_TABLE, "quant_type", ["int2"] * _ROWS), "fingerprint"),
        (_with_metadata(_TABLE, "aliases", {}), "fingerprint"),
        (_with_metadata(_TABLE, "compression", "none"), "fingerprint"),
        (_with_metadata(_TABLE, "source", {"uri": "x"}), "metadata is damaged"),
        (_with_metadata(_TABLE, "aliases", [1]), "metadata is damaged"),
    ],
)
def test_a_table_that_is_no_plan_or_was_changed_is_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(CorruptWeights, match=message):
        plan_from_table(table)


def test_a_plan_of_a_newer_version_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(InvalidCheckpoint, match=r"is 99, .* up to \d+; update"):
        plan_from_table(_with_metadata(_TABLE, "plan_version", 99))


_BYTES = written(PLAN)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(_BYTES) - 1), st.integers(1, 255))
def test_a_flipped_byte_gives_the_same_plan_or_one_clear_error(place: int, mask: int) -> None:
    damaged = bytearray(_BYTES)
    damaged[place] ^= mask
    try:
        plan = read_again(bytes(damaged))
    except ArrowQuantError:
        return
    assert plan.shards == PLAN.shards


@pytest.mark.parametrize("data", [b"", b"ARROW1", _BYTES[:100], _BYTES[:-1], b"\x00" * 1000])
def test_bytes_that_are_no_plan_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptWeights, match="the plan of the run is damaged"):
        read_again(data)
