"""What a plan will store, and the plan's summary."""

from __future__ import annotations

import pytest

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.plan import expected_nbytes, make_plan, summarize
from tests.plan.plan_sources import checkpoint

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
INT8, RUN = QuantizationConfig(), RunConfig()
GROUPS = QuantizationConfig("int4", per_channel=False)


@pytest.mark.parametrize(
    ("config", "shape", "dtype", "nbytes"),
    [
        (INT8, (10, 33), "float32", 10 * 33 + 10 * 4),
        (INT8.replace(symmetric=False), (10, 33), "float32", 10 * 33 + 2 * 10 * 4),
        (GROUPS, (10, 129), "bfloat16", 10 * 65 + 10 * 2 * 4),
        (GROUPS.replace(symmetric=False), (10, 129), "bfloat16", 10 * 65 + 2 * 10 * 2 * 4),
        (GROUPS.replace(quant_type="int3"), (10, 9), "bfloat16", 10 * 4 + 10 * 4),
        (GROUPS.replace(quant_type="int2", group_size=0), (10, 9), "bfloat16", 10 * 3 + 4),
        (INT8, (10,), "float64", 80),
        (INT8.replace(mixed_precision_layers=["x"]), (10, 3), "float64", 60),
        (INT8, (10,), "int64", 80),
        (INT8, (), "bfloat16", 2),
        (INT8, (0, 7), "float32", 0),
    ],
)
def test_expected_bytes_are_those_of_packed_rows_and_their_scales(
    config: QuantizationConfig, shape: tuple[int, ...], dtype: str, nbytes: int
) -> None:
    (block,) = make_plan(checkpoint({"x": shape}, dtype), config, RUN).blocks
    assert expected_nbytes(block) == nbytes


def test_a_summary_adds_up_and_lists_what_stays_unquantized() -> None:
    shapes = {"embed.w": (1000, 64), "a.w": (300_000, 64), "a.norm": (64,), "b.norm": (64,)}
    config = QuantizationConfig("int4", per_channel=False, mixed_precision_layers=["embed", "lm_head"])
    plan = make_plan(checkpoint(shapes), config, RunConfig(block_bytes=16 * MIB))
    summary = summarize(plan, "out", RUN)
    assert (summary.layers, summary.quantized_layers, summary.row_blocks) == (4, 1, 8)
    assert summary.params == 301_000 * 64 + 128
    assert summary.source_nbytes == 4 * summary.params == sum(shard.source_nbytes for shard in plan.shards)
    assert summary.expected_nbytes == sum(map(expected_nbytes, plan.blocks))
    assert {name: totals.layers for name, totals in summary.types.items()} == {
        "int4": 1,
        "fp16": 1,
        "none": 2,
    }
    assert [layer.layer_name for layer in summary.kept_matrices] == ["embed.w"]
    assert summary.kept_reasons == {"1-D": 2, "mixed_precision_layers: embed": 1}
    assert summary.notes == ("mixed_precision_layers: 'lm_head' matches no layer",)
    assert summary.to_dict()["totals"]["layers"] == 4
    assert summary.to_dict()["layers"][0]["layer_name"] == "embed.w"
