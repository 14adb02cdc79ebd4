"""Figures of a report are those of plain float64 arithmetic on whole arrays, whatever blocks they came in."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.reduce import ReportFigures, combine_layers
from tests.reduce.made import (
    EMBED,
    EXACT,
    FP16,
    IDS,
    NORM,
    QUERY,
    RUN,
    Made,
    made,
    plan_of,
    receipts_of,
    reduce_receipts,
)


def plain_cosine(layer: Made) -> float:
    w, d = layer.values.ravel(), layer.decoded.ravel()
    return float(w @ d / np.sqrt((w @ w) * (d @ d)))


def test_sizes_are_sums_over_layers(report: ReportFigures) -> None:
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


def test_the_datasets_compression_counts_whole_part_files(report: ReportFigures) -> None:
    totals = report.totals
    assert totals.compression_vs_source == totals.source_nbytes / totals.parts_nbytes
    assert totals.compression_vs_fp16 == totals.fp16_nbytes / totals.parts_nbytes


def test_layer_types_share_the_totals_out(report: ReportFigures) -> None:
    by_type = {figures.layer_type: figures for figures in report.layer_types}
    assert list(by_type) == ["embeddings", "attention", "feed-forward", "norm", "other"]
    for field in ("layers", "params", "source_nbytes", "fp16_nbytes", "data_nbytes", "stored_nbytes"):
        assert sum(getattr(figures.sizes, field) for figures in report.layer_types) == getattr(
            report.totals, field
        )
    attention = by_type["attention"].sizes
    assert attention.compression_vs_fp16 == attention.fp16_nbytes / attention.stored_nbytes
    assert by_type["norm"].accuracy is None


def test_figures_over_quantized_layers_are_those_of_the_whole_arrays(report: ReportFigures) -> None:
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


def test_a_lossless_layer_is_counted_and_leaves_no_infinity_behind(report: ReportFigures) -> None:
    accuracy = report.accuracy
    assert accuracy is not None
    assert accuracy.sqnr_db is not None
    lossy = [10 * np.log10((x.values**2).sum() / ((x.values - x.decoded) ** 2).sum()) for x in (EMBED, QUERY)]
    assert accuracy.lossless_layers == 1
    np.testing.assert_allclose(accuracy.sqnr_db.mean, np.mean(lossy), rtol=1e-12)
    by_name = {layer.layer_name: layer for layer in report.worst_layers}
    assert by_name[EXACT.layer.name].sqnr_db is None
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_distribution_counts_each_quantized_layer_once(report: ReportFigures) -> None:
    cosines = [plain_cosine(layer) for layer in (EMBED, QUERY, EXACT)]
    for bucket in report.distribution:
        top = math.inf if bucket.high == 1.0 else bucket.high
        assert bucket.layers == sum(bucket.low <= cosine < top for cosine in cosines)
        assert bucket.share == bucket.layers / 3
    assert [b.low for b in report.distribution] == [0.9999, 0.999, 0.99, 0.95, 0.9, 0.7, -1.0]


def test_worst_layers_come_worst_first(report: ReportFigures) -> None:
    assert [layer.layer_name for layer in report.worst_layers] == [
        x.layer.name for x in (QUERY, EMBED, EXACT)
    ]


def test_at_most_ten_worst_layers_are_named() -> None:
    pieces = (tuple((made(f"w{i}", (2, 4), noise=0.01 * i), 0, 2) for i in range(1, 13)),)
    report = reduce_receipts(receipts_of(pieces), plan_of(pieces), RUN)
    cosines = [layer.cosine for layer in report.worst_layers]
    assert len(cosines) == 10
    assert cosines == sorted(cosines)


def test_kept_layers_are_listed_with_their_reason(report: ReportFigures) -> None:
    assert [(layer.layer_name, layer.quant_type, layer.reason) for layer in report.kept_layers] == [
        (NORM.layer.name, "fp16", "1-D"),
        (IDS.layer.name, "none", "integers"),
    ]
    counts = {count.quant_type: (count.layers, count.params) for count in report.quant_types}
    assert counts == {"int8": (3, 432), "fp16": (1, 8), "none": (1, 5)}


def test_the_order_of_receipts_changes_nothing(report: ReportFigures) -> None:
    assert reduce_receipts(receipts_of()[::-1], plan_of(), RUN) == report


def test_blocks_of_a_layer_become_one_row(report: ReportFigures) -> None:
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
