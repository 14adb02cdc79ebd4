"""A made-up run: layers with known values, their plan, and receipts for any shards and blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.format.record import BlobRanges, RowRecord, StoredRange
from arrowquant_dist.format.row import RowHeader
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.plan import Plan, RowBlock, Shard
from arrowquant_dist.reduce import HostFacts, ReportFigures, RunFacts, combine_layers, reduce_layers
from arrowquant_dist.target.receipt import Receipt

HOST = HostFacts("Linux 6.1 x86_64", 2, 8 << 30, "3.11.7", {"numpy": "2.0"})
RUN = RunFacts("inline", 2, "2026-01-02T03:04:05+00:00", 2.0, (), HOST)
INT8 = QuantSpec("int8")
FP16 = QuantSpec("fp16")


@dataclass(frozen=True)
class Made:
    """A layer with its values and what they decode to."""

    layer: Layer
    spec: QuantSpec
    values: np.ndarray
    decoded: np.ndarray
    kept_reason: str | None = None

    def block(self, start: int, stop: int) -> RowBlock:
        return RowBlock(self.layer, self.spec, start, stop - start, self.kept_reason)

    def record(self, start: int, stop: int) -> RowRecord:
        block = self.block(start, stop)
        is_float = DTYPES[self.layer.dtype].is_float
        errors = error_sums(self.rows(self.values, start, stop), self.rows(self.decoded, start, stop))
        data_nbytes = block.num_params if self.spec.is_quantized else 2 * block.num_params
        scales_nbytes = 4 * block.rows if self.spec.is_quantized else 0
        header = RowHeader(
            layer_name=self.layer.name,
            row_start=start,
            shape=block.shape,
            layer_shape=self.layer.shape,
            row_dims=self.spec.row_dims,
            dtype=self.layer.dtype,
            quant_type=self.spec.quant_type,
            quant_axis=self.spec.quant_axis,
            group_size=self.spec.stored_group_size,
            num_params=block.num_params,
            checksum="xxh3_128:00",
        )
        ranges = BlobRanges(
            data=StoredRange(4, data_nbytes - 1, data_nbytes),
            scales=StoredRange(4, scales_nbytes, scales_nbytes),
            zero_points=StoredRange(4, 0, 0),
            chunk_digests=StoredRange(4, 16, 16),
            compression="zstd",
        )
        return RowRecord(
            header=header,
            ranges=ranges,
            source_nbytes=block.num_params * DTYPES[self.layer.dtype].itemsize,
            row_group=0,
            row_in_group=0,
            method="rtn",
            kept_reason=self.kept_reason,
            errors=errors if is_float else None,
        )

    def rows(self, array: np.ndarray, start: int, stop: int) -> np.ndarray:
        row_count = math.prod(self.layer.shape[: self.spec.row_dims])
        columns = math.prod(self.layer.shape[self.spec.row_dims :])
        return array.reshape(row_count, columns)[start:stop]


def error_sums(values: np.ndarray, decoded: np.ndarray) -> ErrorSums:
    w, d = values.astype(np.float64), decoded.astype(np.float64)
    largest = float(np.abs(w - d).max()) if w.size else 0.0
    return ErrorSums(w.size, float((w * w).sum()), float((d * d).sum()), float(((w - d) ** 2).sum()), largest)


def made(
    name: str,
    shape: tuple[int, ...],
    spec: QuantSpec = INT8,
    *,
    noise: float = 0.01,
    dtype: str = "float32",
    kept_reason: str | None = None,
) -> Made:
    rng = np.random.default_rng(sum(name.encode()))
    values = rng.standard_normal(shape)
    decoded = values + noise * rng.standard_normal(shape)
    nbytes = values.size * DTYPES[dtype].itemsize
    return Made(Layer(name, shape, dtype, "/m/x", 0, nbytes), spec, values, decoded, kept_reason)


EMBED = made("embed_tokens.weight", (30, 8), noise=0.02)
QUERY = made("layers.0.self_attn.q_proj.weight", (8, 8), noise=0.2)
EXACT = made("layers.0.mlp.up_proj.weight", (16, 8), noise=0.0, dtype="bfloat16")
NORM = made("layers.0.input_layernorm.weight", (8,), FP16, noise=0.0, kept_reason="1-D")
IDS = made("position_ids", (1, 5), QuantSpec("none"), dtype="int64", kept_reason="integers")
PIECES = (
    ((EMBED, 0, 10), (QUERY, 0, 8)),
    ((EMBED, 10, 30), (NORM, 0, 8), (IDS, 0, 1)),
    ((EXACT, 0, 16),),
)


def plan_of(pieces: tuple[tuple[tuple[Made, int, int], ...], ...] = PIECES) -> Plan:
    shards = tuple(
        Shard(index, tuple(layer.block(start, stop) for layer, start, stop in blocks))
        for index, blocks in enumerate(pieces)
    )
    source = {"uri": "/m", "format": "safetensors", "files": []}
    config = {"quant_type": "int8", "mixed_precision_layers": ("norm",)}
    return Plan(
        shards,
        {"lm_head.weight": "embed_tokens.weight"},
        source,
        config,
        "zstd",
        "xxh3_128:ab",
        "0123456789abcdef",
        (),
        ("a note",),
    )


def receipts_of(pieces: tuple[tuple[tuple[Made, int, int], ...], ...] = PIECES) -> list[Receipt]:
    return [
        Receipt(
            shard=index,
            attempt="a1",
            part=f"weights/shard={index:05d}/part-a1.parquet",
            nbytes=1000 + index,
            hash="xxh3_128:cd",
            rows=tuple(layer.record(start, stop) for layer, start, stop in blocks),
            seconds={"read": 0.5, "quantize": 1.0 + index, "write": 0.25},
            peak_memory_nbytes=(100 + index) << 20,
            worker=f"w{index}",
            node="n",
            wall_seconds=1.5 + index,
            read_nbytes=5000,
            written_nbytes=1000,
            retries=index,
            started_at=datetime.fromisoformat(RUN.started_at).timestamp() + 0.25,
            resident_nbytes=(90 + index) << 20,
        )
        for index, blocks in enumerate(pieces)
    ]


def reduce_receipts(receipts: Sequence[Receipt], plan: Plan, run: RunFacts) -> ReportFigures:
    """Reduces receipts as the driver does."""
    return reduce_layers(combine_layers(receipts, plan), receipts, plan, run)
