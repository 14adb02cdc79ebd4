"""What a source asks to keep stays byte for byte, and what it leaves out is recorded by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arrowquant_dist.config import LayerOverride, QuantizationConfig, RunConfig
from arrowquant_dist.config.choices import QuantType
from arrowquant_dist.errors import CorruptWeights, InvalidConfig
from arrowquant_dist.plan import make_plan, plan_from_table, plan_table, summarize
from tests.plan.plan_bytes import read_again, written
from tests.plan.plan_sources import checkpoint

WHY = "codes of HQQ, which can't be decoded"
LEFT_OUT = {"a.input_scale": "scales of activations"}
SOURCE = replace(
    checkpoint({"a.scale": (64, 4), "b.weight": (64, 64)}), kept={"a.scale": WHY}, left_out=LEFT_OUT
)


@pytest.mark.parametrize("quant_type", ["int8", "int2", "fp16"])
def test_a_layer_that_the_source_asks_to_keep_is_stored_byte_for_byte(quant_type: QuantType) -> None:
    plan = make_plan(SOURCE, QuantizationConfig(quant_type), RunConfig())
    specs = {block.layer.name: (block.spec.quant_type, block.kept_reason) for block in plan.blocks}
    assert specs["a.scale"] == ("none", WHY)
    assert specs["b.weight"][0] == quant_type


def test_an_override_that_names_only_such_layers_is_an_error() -> None:
    config = QuantizationConfig(overrides=[LayerOverride("a.scale", "int4")])
    with pytest.raises(InvalidConfig, match=r"can't be quantized, such as a\.scale \(codes of HQQ"):
        make_plan(SOURCE, config, RunConfig())


def test_a_plan_remembers_what_was_left_out_and_its_summary_has_all_of_it() -> None:
    plan = make_plan(SOURCE, QuantizationConfig(), RunConfig())
    assert read_again(written(plan)) == plan
    assert plan.left_out == LEFT_OUT
    assert summarize(plan, "out", RunConfig()).to_dict()["left_out"] == LEFT_OUT


def test_a_plan_that_an_earlier_release_made_has_left_nothing_out() -> None:
    table = plan_table(make_plan(SOURCE, QuantizationConfig(), RunConfig()))
    metadata = {k: v for k, v in table.schema.metadata.items() if k != b"arrowquant.left_out"}
    assert plan_from_table(table.replace_schema_metadata(metadata)).left_out == {}


@pytest.mark.parametrize("damaged", [b"[]", b'{"a": 1}', b"{"])
def test_a_damaged_list_is_refused(damaged: bytes) -> None:
    table = plan_table(make_plan(SOURCE, QuantizationConfig(), RunConfig()))
    metadata = {**table.schema.metadata, b"arrowquant.left_out": damaged}
    with pytest.raises(CorruptWeights, match="metadata is damaged"):
        plan_from_table(table.replace_schema_metadata(metadata))
