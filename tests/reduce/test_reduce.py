"""The reducer's figures against plain float64 arithmetic on the whole arrays, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import IncompleteDataset, InvalidCheckpoint
from arrowquant_dist.format.record import BlobRanges, RowRecord, StoredRange
from arrowquant_dist.format.row import RowHeader
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.plan import Plan, RowBlock, Shard
from arrowquant_dist.reduce import HostFacts, Report, RunFacts, combine_layers, reduce_layers
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
        )
        for index, blocks in enumerate(pieces)
    ]


def plain_cosine(layer: Made) -> float:
    w, d = layer.values.ravel(), layer.decoded.ravel()
    return float(w @ d / np.sqrt((w @ w) * (d @ d)))


def reduce_receipts(receipts: Sequence[Receipt], plan: Plan, run: RunFacts) -> Report:
    """As the driver does."""
    return reduce_layers(combine_layers(receipts, plan), receipts, plan, run)


@pytest.fixture(scope="module")
def report() -> Report:
    return reduce_receipts(receipts_of(), plan_of(), RUN)


def test_sizes_are_sums_over_layers(report: Report) -> None:
    totals = report.totals
    params = 240 + 64 + 128 + 8 + 5
    assert (totals.layers, totals.params) == (5, params)
    assert totals.source_nbytes == 4 * (240 + 64 + 8) + 2 * 128 + 8 * 5
    assert totals.fp16_nbytes == 2 * (240 + 64 + 128 + 8) + 8 * 5  # integers keep their own size
    assert totals.data_nbytes == 240 + 64 + 128 + 2 * 8 + 2 * 5
    assert totals.scales_nbytes == 4 * (30 + 8 + 16)
    assert totals.zero_points_nbytes == 0
    assert totals.stored_nbytes == totals.data_nbytes + totals.scales_nbytes + 6 * 16 - 6
    assert totals.parts_nbytes == 1000 + 1001 + 1002
    assert (totals.shards, totals.aliases) == (3, 1)


def test_the_datasets_compression_counts_whole_part_files(report: Report) -> None:
    totals = report.totals
    assert totals.compression_vs_source == totals.source_nbytes / totals.parts_nbytes
    assert totals.compression_vs_fp16 == totals.fp16_nbytes / totals.parts_nbytes


def test_layer_types_share_the_totals_out(report: Report) -> None:
    by_type = {figures.layer_type: figures for figures in report.layer_types}
    assert list(by_type) == ["embeddings", "attention", "feed-forward", "norm", "other"]
    for field in ("layers", "params", "source_nbytes", "fp16_nbytes", "data_nbytes", "stored_nbytes"):
        assert sum(getattr(figures.sizes, field) for figures in report.layer_types) == getattr(
            report.totals, field
        )
    attention = by_type["attention"].sizes
    assert attention.compression_vs_fp16 == attention.fp16_nbytes / attention.stored_nbytes
    assert by_type["norm"].accuracy is None


def test_figures_over_quantized_layers_are_those_of_the_whole_arrays(report: Report) -> None:
    quantized = [EMBED, QUERY, EXACT]
    accuracy = report.accuracy
    assert accuracy is not None
    assert accuracy.cosine is not None
    assert accuracy.precision_loss is not None
    assert accuracy.mse is not None
    cosines = np.array([plain_cosine(layer) for layer in quantized])
    errors = [(layer.values - layer.decoded).ravel() for layer in quantized]
    mses = np.array([np.mean(error**2) for error in errors])
    assert accuracy.layers == 3
    np.testing.assert_allclose(accuracy.cosine.mean, cosines.mean(), rtol=1e-13)
    np.testing.assert_allclose(accuracy.cosine.std, cosines.std(), rtol=1e-11)
    np.testing.assert_allclose(
        [accuracy.cosine.min, accuracy.cosine.max], [cosines.min(), cosines.max()], rtol=1e-13
    )
    np.testing.assert_allclose(accuracy.precision_loss.mean, (1 - cosines).mean(), rtol=1e-10)
    np.testing.assert_allclose(accuracy.mse.mean, mses.mean(), rtol=1e-13)
    assert accuracy.max_error == max(np.abs(error).max() for error in errors)
    everything = np.concatenate(errors)
    assert accuracy.overall_mse == pytest.approx(np.mean(everything**2), rel=1e-13)
    power = sum((layer.values**2).sum() for layer in quantized)
    sqnr_db = 10 * np.log10(power / (everything**2).sum())
    assert accuracy.overall_sqnr_db == pytest.approx(sqnr_db, rel=1e-13)


def test_a_lossless_layer_is_counted_and_leaves_no_infinity_behind(report: Report) -> None:
    accuracy = report.accuracy
    assert accuracy is not None
    assert accuracy.sqnr_db is not None
    lossy = [10 * np.log10((x.values**2).sum() / ((x.values - x.decoded) ** 2).sum()) for x in (EMBED, QUERY)]
    assert accuracy.lossless_layers == 1
    np.testing.assert_allclose(accuracy.sqnr_db.mean, np.mean(lossy), rtol=1e-12)
    by_name = {layer.layer_name: layer for layer in report.worst_layers}
    assert by_name[EXACT.layer.name].sqnr_db is None
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_distribution_counts_each_quantized_layer_once(report: Report) -> None:
    cosines = [plain_cosine(layer) for layer in (EMBED, QUERY, EXACT)]
    for bucket in report.distribution:
        top = math.inf if bucket.high == 1.0 else bucket.high
        assert bucket.layers == sum(bucket.low <= cosine < top for cosine in cosines)
        assert bucket.share == bucket.layers / 3
    assert [b.low for b in report.distribution] == [0.9999, 0.999, 0.99, 0.95, 0.9, 0.7, -1.0]


def test_worst_layers_come_worst_first(report: Report) -> None:
    assert [layer.layer_name for layer in report.worst_layers] == [
        x.layer.name for x in (QUERY, EMBED, EXACT)
    ]


def test_at_most_ten_worst_layers_are_named() -> None:
    pieces = (tuple((made(f"w{i}", (2, 4), noise=0.01 * i), 0, 2) for i in range(1, 13)),)
    report = reduce_receipts(receipts_of(pieces), plan_of(pieces), RUN)
    cosines = [layer.cosine for layer in report.worst_layers]
    assert len(cosines) == 10
    assert cosines == sorted(cosines)


def test_kept_layers_are_listed_with_their_reason(report: Report) -> None:
    assert [(layer.layer_name, layer.quant_type, layer.reason) for layer in report.kept_layers] == [
        (NORM.layer.name, "fp16", "1-D"),
        (IDS.layer.name, "none", "integers"),
    ]
    counts = {count.quant_type: (count.layers, count.params) for count in report.quant_types}
    assert counts == {"int8": (3, 432), "fp16": (1, 8), "none": (1, 5)}


def test_phases_add_up_over_workers_and_memory_is_the_largest(report: Report) -> None:
    assert report.timing.phases == {"read": 1.5, "quantize": 6.0, "write": 0.75}
    assert report.timing.peak_memory_nbytes == 102 << 20
    assert report.timing.params_per_second == report.totals.params / 2.0
    assert report.timing.source_nbytes_per_second == report.totals.source_nbytes / 2.0


def test_throughput_leaves_out_what_an_earlier_run_had_finished() -> None:
    resumed = reduce_receipts(receipts_of(), plan_of(), replace(RUN, resumed_shards=(0, 1)))
    assert resumed.timing.params_per_second == 128 / 2.0
    everything = reduce_receipts(receipts_of(), plan_of(), replace(RUN, resumed_shards=(0, 1, 2)))
    assert everything.timing.params_per_second is None


def test_work_is_told_apart_by_run_and_by_machine() -> None:
    receipts = receipts_of()  # shard i: worker w{i}, 1.5 + i seconds, i requests repeated
    receipts[2] = replace(receipts[2], node="m", worker="w0")
    facts = replace(RUN, resumed_shards=(0,), worker_seconds=12.0, wasted_seconds=3.0)
    work = reduce_receipts(receipts, plan_of(), facts).work
    assert work is not None
    source = [sum(row.source_nbytes for row in receipt.rows) for receipt in receipts]
    assert (work.earlier_runs.shards, work.earlier_runs.busy_seconds) == (1, 1.5)
    assert (work.this_run.shards, work.this_run.busy_seconds) == (2, 2.5 + 3.5)
    assert (work.this_run.request_retries, work.this_run.read_nbytes) == (3, 10_000)
    assert work.this_run.source_nbytes == source[1] + source[2]
    assert work.efficiency == 6.0 / 12.0
    assert work.wasted_share == 3.0 / 12.0
    assert work.read_per_source == 10_000 / (source[1] + source[2])
    nodes = {share.name: share for share in work.nodes}
    assert (nodes["n"].shards, nodes["n"].workers, nodes["n"].source_nbytes) == (2, 2, source[0] + source[1])
    assert nodes["m"].source_nbytes_per_second == source[2] / 3.5
    assert {share.name: share.shards for share in work.workers} == {"w0": 2, "w1": 1}
    rates = [share.source_nbytes_per_second or 0.0 for share in work.workers]
    assert rates == sorted(rates, reverse=True)


def test_a_run_that_found_all_finished_has_no_efficiency() -> None:
    work = reduce_receipts(receipts_of(), plan_of(), replace(RUN, resumed_shards=(0, 1, 2))).work
    assert work is not None
    assert work.this_run.shards == 0
    assert (work.efficiency, work.wasted_share, work.read_per_source) == (None, None, None)


def test_the_order_of_receipts_changes_nothing(report: Report) -> None:
    assert reduce_receipts(receipts_of()[::-1], plan_of(), RUN) == report


def test_blocks_of_a_layer_become_one_row(report: Report) -> None:
    layers = combine_layers(receipts_of(), plan_of())
    embed = layers[0]
    assert (embed.layer_name, embed.shape, embed.row_blocks, embed.params) == (
        "embed_tokens.weight",
        (30, 8),
        2,
        240,
    )
    assert embed.errors is not None
    np.testing.assert_allclose(embed.errors.cosine, plain_cosine(EMBED), rtol=1e-14)
    assert report.totals.layers == len(layers)


def test_blocks_stored_differently_say_so() -> None:
    receipts = receipts_of()
    rows = list(receipts[1].rows)
    header = replace(rows[0].header, quant_type="none")
    rows[0] = replace(rows[0], header=header, kept_reason="holds NaN", errors=None)
    receipts[1] = replace(receipts[1], rows=tuple(rows))
    embed = combine_layers(receipts, plan_of())[0]
    assert (embed.quant_type, embed.kept_reason, embed.is_quantized) == ("int8+none", "holds NaN", True)


def test_fused_experts_are_covered_by_their_two_row_dimensions() -> None:
    experts = made("mlp.experts.down_proj", (3, 4, 5), QuantSpec("int4", row_dims=2))
    pieces = (((experts, 0, 5),), ((experts, 5, 12),))
    layers = combine_layers(receipts_of(pieces), plan_of(pieces))
    assert (layers[0].shape, layers[0].params, layers[0].row_blocks) == ((3, 4, 5), 60, 2)


@pytest.mark.parametrize("shape", [(), (0, 4), (4, 0)])
def test_scalars_and_empty_layers_reduce(shape: tuple[int, ...]) -> None:
    layer = made("scalar", shape, FP16, kept_reason="small")
    rows = math.prod(shape[:1])
    pieces = (((layer, 0, rows),),)
    report = reduce_receipts(receipts_of(pieces), plan_of(pieces), RUN)
    assert report.totals.params == math.prod(shape)
    assert report.accuracy is None
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_layer_beyond_float64_sums_is_unmeasured_and_not_perfect() -> None:
    receipts = receipts_of()
    rows = list(receipts[2].rows)
    rows[0] = replace(rows[0], errors=ErrorSums(128, math.inf, math.inf, math.inf, 1.0))
    receipts[2] = replace(receipts[2], rows=tuple(rows))
    report = reduce_receipts(receipts, plan_of(), RUN)
    assert report.accuracy is not None
    assert (report.accuracy.layers, report.accuracy.unmeasured_layers) == (2, 1)
    assert EXACT.layer.name not in {layer.layer_name for layer in report.worst_layers}
    json.dumps(report.to_dict(), allow_nan=False)


def test_missing_shards_are_named_and_counted() -> None:
    pieces = tuple(((made(f"layer{i}", (2, 2)), 0, 2),) for i in range(9))
    with pytest.raises(IncompleteDataset, match=r"7 of 9 shards are missing \(2, 3, 4, 5, 6 and 2 more\)"):
        reduce_receipts(receipts_of(pieces)[:2], plan_of(pieces), RUN)


def test_a_shard_told_twice_is_refused() -> None:
    receipts = receipts_of()
    with pytest.raises(IncompleteDataset, match=r"one too many \(1\)"):
        reduce_receipts([*receipts, receipts[1]], plan_of(), RUN)


def without(receipts: list[Receipt], shard: int, row: int) -> list[Receipt]:
    rows = receipts[shard].rows
    return [
        *receipts[:shard],
        replace(receipts[shard], rows=rows[:row] + rows[row + 1 :]),
        *receipts[shard + 1 :],
    ]


@pytest.mark.parametrize(
    ("shard", "row", "message"),
    [
        (0, 1, r"1 of 5 layers are missing \('layers.0.self_attn.q_proj.weight'\)"),
        (0, 0, r"layer 'embed_tokens.weight': rows 0 to 10 of 30 are missing"),
        (1, 0, r"layer 'embed_tokens.weight': has rows up to 10 of 30"),
    ],
)
def test_rows_that_do_not_cover_the_plan_are_refused(shard: int, row: int, message: str) -> None:
    with pytest.raises(IncompleteDataset, match=message):
        reduce_receipts(without(receipts_of(), shard, row), plan_of(), RUN)


def test_overlapping_rows_are_refused() -> None:
    receipts = receipts_of()
    rows = (EMBED.record(8, 30), *receipts[1].rows[1:])
    receipts[1] = replace(receipts[1], rows=rows)
    with pytest.raises(IncompleteDataset, match="rows 8 to 10 of 30 are there twice"):
        reduce_receipts(receipts, plan_of(), RUN)


def test_rows_of_another_plan_are_refused() -> None:
    receipts = receipts_of()
    receipts[0] = replace(receipts[0], rows=(*receipts[0].rows, made("stranger", (2, 2)).record(0, 2)))
    with pytest.raises(IncompleteDataset, match="not in the plan"):
        reduce_receipts(receipts, plan_of(), RUN)


def test_a_report_comes_back_from_its_json(report: Report) -> None:
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    "change",
    [
        {"report_version": 1},
        {"report_version": 3},
        {"work": {}},
        {"work": {"nodes": 3}},
        {"report_version": None},
        {"totals": {}},
        {"totals": None},
        {"run": {"engine": "inline"}},
        {"worst_layers": [{"shape": 3}]},
        {"accuracy": {"cosine": 1}},
    ],
)
def test_what_is_no_report_is_refused(report: Report, change: dict[str, object]) -> None:
    with pytest.raises(InvalidCheckpoint, match="report"):
        Report.from_dict({**report.to_dict(), **change})
