"""The stored bytes that a dry run predicts are those that the run stores, within 3 %, and only some rows are read for
it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.config import load_config
from arrowquant_dist.driver import preview
from arrowquant_dist.plan import summarize
from arrowquant_dist.report.layer_rows import load_layer_rows
from tests.conftest import CHECKOUT
from tests.sources import save_checkpoint


def check_estimate(source: str, target: str, config: QuantizationConfig, run: RunConfig) -> None:
    found = preview(source, target, config, run)
    assert found.there.state == "empty"
    report = ArrowQuantizer(config, run).quantize(source, target)
    assert found.sizes.parts_nbytes == pytest.approx(report.totals.parts_nbytes, rel=0.03)
    assert sum(found.sizes.layers.values()) == pytest.approx(report.totals.stored_nbytes, rel=0.03)
    assert preview(source, target, config, run).there.done == report.totals.shards


@pytest.mark.parametrize("name", ["int8", "int4", "int2", "int2-asymmetric", "mixed"])
def test_the_estimate_is_within_three_hundredths_of_minilm(name: str, tmp_path: Path) -> None:
    config, run = load_config(CHECKOUT / "configs" / f"{name}.yaml")
    check_estimate("minilm", str(tmp_path / "out"), config, run)


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_layer_that_fp16_cannot_hold_is_planned_as_it_is_stored(
    compression: Literal["zstd", "none"], tmp_path: Path
) -> None:
    weights = {
        "embed.weight": torch.randn(512, 64, generator=torch.Generator().manual_seed(3)) * 1e-9,
        "shared.weight": torch.randn(512, 64, generator=torch.Generator().manual_seed(4)),
    }
    source = save_checkpoint(tmp_path / "source", weights)
    config = QuantizationConfig("int8", mixed_precision_layers=["embed", "shared"])
    run = RunConfig(compression=compression)
    found = preview(source, str(tmp_path / "out"), config, run)
    planned = summarize(found.plan, "out", run, found.sizes)
    check_estimate(source, str(tmp_path / "out"), config, run)
    stored = {row.layer_name: row for row in load_layer_rows(str(tmp_path / "out")) or ()}
    for layer in planned.planned:
        assert layer.quant_type == stored[layer.layer_name].quant_type
        assert layer.expected_nbytes == layer.params * {"none": 4, "fp16": 2}[layer.quant_type]
    assert {name: totals.layers for name, totals in planned.types.items()} == {"none": 1, "fp16": 1}
    assert any("precision: embed.weight;" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("config", "run"),
    [
        (QuantizationConfig("int4", per_channel=False), RunConfig(compression="none")),
        (QuantizationConfig("int8", per_channel=False, group_size=0), RunConfig()),
        (QuantizationConfig("int8"), RunConfig(block_bytes=1 << 16, shard_bytes=1 << 18)),
        pytest.param(QuantizationConfig(size="300kB"), RunConfig(), marks=pytest.mark.slow),
    ],
)
def test_the_estimate_follows_compression_scales_blocks_and_sizes(
    config: QuantizationConfig, run: RunConfig, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(5)
    weights = {
        f"layers.{i}.{part}.weight": torch.randn(192, 256, generator=generator) * (1 + i) * 0.01
        for i in range(6)
        for part in ("q_proj", "down_proj")
    }
    weights |= {f"layers.{i}.norm.weight": torch.randn(256, generator=generator) for i in range(6)}
    weights["empty.weight"] = torch.zeros(0, 7)
    check_estimate(save_checkpoint(tmp_path / "source", weights), str(tmp_path / "out"), config, run)


def test_the_estimate_knows_steps_that_grow_with_a_rows_index(tmp_path: Path) -> None:
    weights = {"embeddings.weight": torch.randn(60_000, 64, generator=torch.Generator().manual_seed(7))}
    source = save_checkpoint(tmp_path / "source", weights)
    config = QuantizationConfig("int8", method="size", step=0.3, row_exponent=0.15, rate=0.1)
    check_estimate(source, str(tmp_path / "out"), config, RunConfig())


@pytest.mark.slow  # 10,000 layers take seconds to write
def test_the_estimate_is_within_three_hundredths_of_ten_thousand_layers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    weights = {
        f"layers.{i // 4}.{'qkvo'[i % 4]}_proj.weight": torch.randn(24, 64, generator=generator).to(
            torch.bfloat16
        )
        for i in range(10_000)
    }
    source = save_checkpoint(tmp_path / "source", weights)
    config = QuantizationConfig("int4", per_channel=False, group_size=32, symmetric=False)
    check_estimate(source, str(tmp_path / "out"), config, RunConfig())
