"""Sizes so small that MiniLM's layers are cut, reads are split, and parts are uploaded in several pieces."""

from __future__ import annotations

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.config import Transfer

INT8 = QuantizationConfig("int8")
SIZES = RunConfig(
    engine="inline",
    workers=2,
    block_bytes=8 << 20,
    shard_bytes=32 << 20,
    compression="none",
    transfer=Transfer(range_bytes=1 << 20, upload_bytes=5 << 20),
)
