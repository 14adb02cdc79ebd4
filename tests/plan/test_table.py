"""A plan as an Arrow table: its content, its way back, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import LayerOverride, QuantizationConfig, RunConfig
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, InvalidCheckpoint
from arrowquant_dist.plan import Plan, make_plan, plan_from_table, plan_table
from tests.plan import every_kind
from tests.plan.plan_bytes import read_again, written
from tests.plan.plan_sources import CONFIGS, RUNS, checkpoint, checkpoints

CONFIG = QuantizationConfig("int4", per_channel=False, mixed_precision_layers=["embed", "lm_head"])
PLAN = make_plan(
    checkpoint({"embed": (3000, 200), "w": (1000, 200), "norm": (200,)}, aliases={"tied": "embed"}),
    CONFIG,
    RunConfig(block_bytes=1 << 20),
)
EVERY = make_plan(every_kind.NOW, every_kind.CONFIG, every_kind.RUN)


@settings(max_examples=150)
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


def test_encodings_are_typed_columns() -> None:
    connection = duckdb.connect()
    connection.register("plan", plan_table(EVERY))
    query = (
        "select layer_name, encoding, packed.bits, packed.block, packed.zero_points.offset, float8.scales.uri,"
        " strided.strides from plan where layer_name in ('packed.weight', 'view.weight', 'norm.weight',"
        " 'float8_elsewhere.weight') and row_start = 0 order by 1"
    )
    assert connection.execute(query).fetchall() == [
        ("float8_elsewhere.weight", "float8", None, None, None, "s3://bucket/model/b.bin", None),
        ("norm.weight", "raw", None, None, None, None, None),
        ("packed.weight", "packed", 4, [1, 32], 520_000, None, None),
        ("view.weight", "strided", None, None, None, None, [1, 50]),
    ]


def test_a_plan_has_the_columns_of_the_kinds_in_it() -> None:
    assert plan_table(PLAN).schema.names[-2:] == ["kept_reason", "encoding"]
    kinds = ["strided", "float8", "int8", "packed", "microscaled", "transposed_microscaled"]
    kinds += ["gptq", "awq", "awq_rows", "affine", "llm_int8", "nvfp4", "nvfp4_row_pairs"]
    assert plan_table(EVERY).schema.names[-len(kinds) - 2 :] == ["kept_reason", "encoding", *kinds]


def _with_metadata(table: pa.Table, name: str, value: object) -> pa.Table:
    return table.replace_schema_metadata(
        {**table.schema.metadata, f"arrowquant.{name}".encode(): json.dumps(value)}
    )


def _with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.names.index(name), field, pa.array(values, field.type))


_TABLE = plan_table(PLAN)
_ROWS = _TABLE.num_rows
_EVERY = plan_table(EVERY)
_RENAMED = _EVERY.rename_columns({"packed": "pocked"}).replace_schema_metadata(_EVERY.schema.metadata)
_MOVED = pa.array([{"strides": [2, 50]}] * _EVERY.num_rows, _EVERY.schema.field("strided").type)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_TABLE.replace_schema_metadata({}), "metadata is damaged"),
        (
            _TABLE.replace_schema_metadata({**_TABLE.schema.metadata, b"arrowquant.source": b"{"}),
            "metadata is damaged",
        ),
        (_TABLE.drop_columns(["rows"]), "does not have the columns"),
        (_with_column(_TABLE, "rows", [None] * _ROWS), "empty cells"),
        (_with_column(_TABLE, "rows", [1] * _ROWS), "fingerprint"),
        (_with_column(_TABLE, "quant_type", ["int2"] * _ROWS), "fingerprint"),
        (_with_metadata(_TABLE, "aliases", {}), "fingerprint"),
        (_with_metadata(_TABLE, "compression", "none"), "fingerprint"),
        (_with_metadata(_TABLE, "source", {"uri": "x"}), "metadata is damaged"),
        (_with_metadata(_TABLE, "aliases", [1]), "metadata is damaged"),
        (_with_metadata(_TABLE, "plan_version", 0), "metadata is damaged"),
        (_with_column(_TABLE, "encoding", ["dataset"] * _ROWS), "fingerprint"),
        (_with_column(_TABLE, "encoding", ["rabbit"] * _ROWS), "there is no encoding 'rabbit'"),
        (_with_column(_TABLE, "encoding", ["packed"] * _ROWS), "the encodings 'packed' have no column"),
        (_with_column(_TABLE, "encoding", [None] * _ROWS), "empty cells"),
        (_with_column(_EVERY, "encoding", ["packed"] * _EVERY.num_rows), "an encoding is empty"),
        (_with_column(_EVERY, "strided", [None] * _EVERY.num_rows), "an encoding is empty"),
        (_with_column(_EVERY, "strided", [{}] * _EVERY.num_rows), "strides of an encoding is empty"),
        (_with_column(_EVERY, "strided", _MOVED), "fingerprint"),
        (_EVERY.append_column("rabbit", pa.array([1] * _EVERY.num_rows)), "does not have the columns"),
        (_RENAMED, "does not have the columns"),
    ],
)
def test_a_table_that_is_no_plan_or_was_changed_is_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(CorruptWeights, match=message):
        plan_from_table(table)


def test_a_plan_of_a_newer_version_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(InvalidCheckpoint, match=r"is 99, .* up to \d+; update"):
        plan_from_table(_with_metadata(_TABLE, "plan_version", 99))


_BYTES = written(PLAN)


@pytest.mark.parametrize("plan", [PLAN, EVERY], ids=["raw", "every kind"])
@settings(max_examples=150)
@given(data=st.data(), mask=st.integers(1, 255))
def test_a_flipped_byte_gives_the_same_plan_or_one_clear_error(
    plan: Plan, data: st.DataObject, mask: int
) -> None:
    damaged = bytearray(written(plan))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= mask
    try:
        found = read_again(bytes(damaged))
    except ArrowQuantError:
        return
    assert found.shards == plan.shards


@pytest.mark.parametrize("data", [b"", b"ARROW1", _BYTES[:100], _BYTES[:-1], b"\x00" * 1000])
def test_bytes_that_are_no_plan_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptWeights, match="the plan of the run is damaged"):
        read_again(data)


def test_scales_of_another_dtype_are_a_column_of_the_plans_that_have_them() -> None:
    config = QuantizationConfig(
        "int4", scale_dtype="bfloat16", overrides=[LayerOverride("b", scale_dtype="float32")]
    )
    source = checkpoint({"a": (300, 200), "b": (300, 200), "norm": (200,)})
    plan = make_plan(source, config, RunConfig())
    table = plan_table(plan)
    assert dict(zip(table["layer_name"].to_pylist(), table["scale_dtype"].to_pylist(), strict=True)) == {
        "a": "bfloat16",
        "b": "float32",
        "norm": "float32",
    }
    assert plan_from_table(table) == plan
    assert "scale_dtype" not in plan_table(PLAN).schema.names
    plain = make_plan(source, config.replace(scale_dtype="float32"), RunConfig())
    assert plain.fingerprint != plan.fingerprint
