"""The inline engine logs one line per shard."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.errors import UnquantizableWeights
from tests.logged import Logged
from tests.sources import save_checkpoint

RUN = RunConfig(engine="inline", workers=2, block_bytes=64 << 10, shard_bytes=300 << 10)


def test_a_shard_is_a_line_of_json(tmp_path: Path, logged: Logged) -> None:
    source = save_checkpoint(tmp_path / "source", {f"l{i}.weight": torch.randn(256, 256) for i in range(3)})
    with logged.at_level(logging.DEBUG, "arrowquant_dist.shards"):
        ArrowQuantizer(QuantizationConfig(), RUN).quantize(source, str(tmp_path / "target"))
    lines = logged.shard_lines()
    assert sorted(str(line["shard"]) for line in lines) == ["0", "1", "2"]
    for line in lines:
        assert (line["attempt"], line["outcome"], line["layers"], line["row_blocks"]) == (1, "done", 1, 4)
        assert line["source_bytes"] == line["read_bytes"] == 256 * 256 * 4
        assert set(line) >= {"node", "worker_seconds", "seconds", "written_bytes", "request_retries"}


def test_a_shard_that_fails_says_why(tmp_path: Path, logged: Logged) -> None:
    weights = {"good.weight": torch.randn(256, 256), "bad.weight": torch.full((256, 256), torch.nan)}
    source = save_checkpoint(tmp_path / "source", weights)
    with logged.at_level(logging.DEBUG, "arrowquant_dist.shards"), pytest.raises(UnquantizableWeights):
        ArrowQuantizer(QuantizationConfig(), RUN).quantize(source, str(tmp_path / "target"))
    lines = {line["outcome"]: line for line in logged.shard_lines()}
    assert set(lines) == {"done", "failed"}
    assert "bad.weight" in str(lines["failed"]["error"])
