"""The reducer: from receipts to ReportFigures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.plan import Plan
from arrowquant_dist.reduce.facts import RunFacts
from arrowquant_dist.reduce.figures import (
    Accuracy,
    Bucket,
    KeptLayer,
    LayerTypeFigures,
    QuantTypeCount,
    ReportFigures,
    Sizes,
    Timing,
    Totals,
    WorstLayer,
    is_measured,
)
from arrowquant_dist.reduce.layer_types import LAYER_TYPES
from arrowquant_dist.reduce.layers import LayerMetrics
from arrowquant_dist.reduce.notes import value_notes
from arrowquant_dist.reduce.ratios import finite, ratio
from arrowquant_dist.reduce.timeline import Timeline
from arrowquant_dist.reduce.work import WorkFigures, source_nbytes
from arrowquant_dist.target.receipt import Receipt

_BUCKETS = (
    ("≥ 0.9999", 0.9999, 1.0),
    ("0.999 – 0.9999", 0.999, 0.9999),
    ("0.99 – 0.999", 0.99, 0.999),
    ("0.95 – 0.99", 0.95, 0.99),
    ("0.9 – 0.95", 0.9, 0.95),
    ("0.7 – 0.9", 0.7, 0.9),
    ("< 0.7", -1.0, 0.7),
)
_WORST = 10


def reduce_layers(
    layers: Sequence[LayerMetrics],
    receipts: Sequence[Receipt],
    plan: Plan,
    run: RunFacts,
    worker_memory_nbytes: int | None = None,
) -> ReportFigures:
    """All figures of a finished run. layers: the result of combine_layers, which checks the receipts.
    worker_memory_nbytes: the plan's bound of a worker's memory."""
    quantized = [layer for layer in layers if layer.is_quantized]
    return ReportFigures(
        source={key: plan.source.get(key) for key in ("uri", "format")},
        config=json.loads(json.dumps(plan.config, allow_nan=False)),  # plain lists, as a report has them
        fingerprint=plan.fingerprint,
        part_compression=plan.compression,
        run=run,
        work=WorkFigures.of(receipts, run),
        totals=_totals(layers, receipts, plan),
        layer_types=tuple(_layer_types(layers)),
        quant_types=tuple(_quant_types(layers)),
        accuracy=_accuracy(layers),
        distribution=_distribution(quantized),
        worst_layers=_worst_layers(quantized),
        kept_layers=tuple(_kept_layer(layer) for layer in layers if not layer.is_quantized),
        timing=_timing(receipts, run),
        timeline=Timeline.of(receipts, run, worker_memory_nbytes),
        notes=(*plan.notes, *value_notes(layers, plan)),
    )


def _totals(layers: Sequence[LayerMetrics], receipts: Sequence[Receipt], plan: Plan) -> Totals:
    return Totals(
        **_size_fields(layers),
        parts_nbytes=sum(receipt.nbytes for receipt in receipts),
        shards=len(plan.shards),
        aliases=len(plan.aliases),
    )


def _size_fields(layers: Sequence[LayerMetrics]) -> dict[str, int]:
    return {
        "layers": len(layers),
        "params": sum(layer.params for layer in layers),
        "source_nbytes": sum(layer.source_nbytes for layer in layers),
        "fp16_nbytes": sum(_fp16_nbytes(layer) for layer in layers),
        "data_nbytes": sum(layer.data_nbytes for layer in layers),
        "scales_nbytes": sum(layer.scales_nbytes for layer in layers),
        "zero_points_nbytes": sum(layer.zero_points_nbytes for layer in layers),
        "stored_nbytes": sum(layer.stored_nbytes for layer in layers),
    }


def _fp16_nbytes(layer: LayerMetrics) -> int:
    return 2 * layer.params if DTYPES[layer.dtype].is_float else layer.source_nbytes


def _layer_types(layers: Sequence[LayerMetrics]) -> Iterable[LayerTypeFigures]:
    for name in LAYER_TYPES:
        of_type = [layer for layer in layers if layer.layer_type == name]
        if of_type:
            yield LayerTypeFigures(name, Sizes(**_size_fields(of_type)), _accuracy(of_type))


def _quant_types(layers: Sequence[LayerMetrics]) -> Iterable[QuantTypeCount]:
    by_type: dict[str, list[int]] = {}
    for layer in layers:
        by_type.setdefault(layer.quant_type, []).append(layer.params)
    counts = [QuantTypeCount(name, len(params), sum(params)) for name, params in by_type.items()]
    return sorted(counts, key=lambda count: (-count.params, count.quant_type))


def _accuracy(layers: Sequence[LayerMetrics]) -> Accuracy | None:
    return Accuracy.over([layer.errors for layer in layers if layer.is_quantized and not layer.keeps_codes])


def _measured(layers: Sequence[LayerMetrics]) -> list[tuple[LayerMetrics, ErrorSums]]:
    return [
        (layer, layer.errors) for layer in layers if layer.errors is not None and is_measured(layer.errors)
    ]


def _distribution(quantized: Sequence[LayerMetrics]) -> tuple[Bucket, ...]:
    cosines = [errors.cosine for _, errors in _measured(quantized)]
    counts = [0] * len(_BUCKETS)
    for cosine in cosines:
        # Bounds fall to the lowest cosine there is, so the first that is reached is that of the bucket.
        counts[next(i for i, (_, low, _) in enumerate(_BUCKETS) if cosine >= low)] += 1
    return tuple(
        Bucket(label, low, high, count, ratio(count, len(cosines)) or 0.0)
        for (label, low, high), count in zip(_BUCKETS, counts, strict=True)
    )


def _worst_layers(quantized: Sequence[LayerMetrics]) -> tuple[WorstLayer, ...]:
    worst = sorted(_measured(quantized), key=lambda pair: (pair[1].cosine, pair[0].layer_name))[:_WORST]
    return tuple(
        WorstLayer(
            layer_name=layer.layer_name,
            layer_type=layer.layer_type,
            shape=layer.shape,
            quant_type=layer.quant_type,
            cosine=errors.cosine,
            mse=finite(errors.mse),
            sqnr_db=finite(errors.sqnr_db),
            max_error=finite(errors.max_error),
        )
        for layer, errors in worst
    )


def _kept_layer(layer: LayerMetrics) -> KeptLayer:
    reason = layer.kept_reason or f"stored as {layer.quant_type} as the config says"
    return KeptLayer(layer.layer_name, layer.shape, layer.dtype, layer.quant_type, layer.params, reason)


def _timing(receipts: Sequence[Receipt], run: RunFacts) -> Timing:
    phases: dict[str, float] = {}
    for receipt in sorted(receipts, key=lambda receipt: receipt.shard):
        for phase, seconds in receipt.seconds.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    earlier = set(run.resumed_shards)
    fresh = [receipt for receipt in receipts if receipt.shard not in earlier]
    params = sum(row.header.num_params for receipt in fresh for row in receipt.rows)
    read_nbytes = sum(map(source_nbytes, fresh))
    return Timing(
        phases=phases,
        wall_seconds=run.wall_seconds,
        params_per_second=ratio(params, run.wall_seconds) if fresh else None,
        source_nbytes_per_second=ratio(read_nbytes, run.wall_seconds) if fresh else None,
        peak_memory_nbytes=max((receipt.peak_memory_nbytes for receipt in receipts), default=0),
    )
