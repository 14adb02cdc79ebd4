"""Reduces receipts to one row of figures a layer, and proves that nothing of the plan is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from arrowquant_dist.config import BITS, SOURCE
from arrowquant_dist.errors import IncompleteDataset, are, counted, have, listed
from arrowquant_dist.format.record import RowRecord
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.plan import Plan
from arrowquant_dist.reduce.layer_types import layer_type
from arrowquant_dist.target.receipt import Receipt

_RERUN = "run the same `quantize` command again to complete the dataset"


@dataclass(frozen=True, slots=True)
class LayerMetrics:
    """Figures of one layer, its row blocks added up.

    quant_type, method: those of the blocks; `a+b` where they differ (a kept layer is `fp16` where a block's values fit
    and `none` elsewhere). data_nbytes, scales_nbytes, zero_points_nbytes: uncompressed sizes. stored_nbytes: size of
    all values as they are in the part, compressed, without Parquet's framing. errors: None for integer and bool layers,
    and for layers that keep the source's codes, whose source_nbytes is their size as the source stores them.
    """

    layer_name: str
    layer_type: str
    shape: tuple[int, ...]
    dtype: str
    quant_type: str
    method: str
    quant_axis: int
    group_size: int
    row_blocks: int
    params: int
    source_nbytes: int
    data_nbytes: int
    scales_nbytes: int
    zero_points_nbytes: int
    stored_nbytes: int
    kept_reason: str | None
    errors: ErrorSums | None

    @property
    def keeps_codes(self) -> bool:
        """Whether its codes are the source's own, so that it has no error."""
        return self.method == SOURCE

    @property
    def is_quantized(self) -> bool:
        return stores_codes(self.quant_type)


@cache
def stores_codes(quant_type: str) -> bool:
    """Whether a layer has codes in any of its row blocks. quant_type: as in LayerMetrics."""
    return not BITS.keys().isdisjoint(quant_type.split("+"))


def combine_layers(receipts: Sequence[Receipt], plan: Plan) -> tuple[LayerMetrics, ...]:
    """The layers of a finished run, in the plan's order.

    Raises IncompleteDataset, which names them, where shards or layers are missing or reported twice, or where the rows
    of a layer do not cover it exactly once.
    """
    _check_shards(receipts, plan)
    rows = _rows_by_layer(receipts)
    planned = list(dict.fromkeys(block.layer.name for shard in plan.shards for block in shard.blocks))
    missing = [name for name in planned if name not in rows]
    if missing:
        found = f"{len(missing)} of {counted(len(planned), 'layer')} {are(len(missing))} missing"
        raise IncompleteDataset(f"{found} ({listed(map(repr, missing))}); {_RERUN}")
    unplanned = sorted(rows.keys() - set(planned))
    if unplanned:
        raise IncompleteDataset(
            f"{counted(len(unplanned), 'layer')} {are(len(unplanned))} not in the plan "
            f"({listed(map(repr, unplanned))}); the target was written with another plan; start again with --overwrite"
        )
    for name in planned:
        _check_cover(name, rows[name])
    return tuple(_combine(rows[name]) for name in planned)


def _check_shards(receipts: Sequence[Receipt], plan: Plan) -> None:
    planned = {shard.index for shard in plan.shards}
    told = [receipt.shard for receipt in receipts]
    missing = sorted(planned - set(told))
    if missing:
        raise IncompleteDataset(
            f"{len(missing)} of {counted(len(planned), 'shard')} {are(len(missing))} missing "
            f"({listed(missing)}); {_RERUN}"
        )
    if len(told) != len(planned) or set(told) != planned:
        surplus = sorted({shard for shard in told if shard not in planned or told.count(shard) > 1})
        raise IncompleteDataset(
            f"{counted(len(surplus), 'shard')} {have(len(surplus))} a surplus receipt "
            f"({listed(surplus)}); keep only the committed receipt of each planned shard"
        )


def _rows_by_layer(receipts: Sequence[Receipt]) -> dict[str, list[RowRecord]]:
    rows: dict[str, list[RowRecord]] = {}
    for receipt in sorted(receipts, key=lambda receipt: receipt.shard):
        for row in receipt.rows:
            rows.setdefault(row.header.layer_name, []).append(row)
    for blocks in rows.values():
        blocks.sort(key=lambda row: row.header.row_start)
    return rows


def _check_cover(name: str, blocks: Sequence[RowRecord]) -> None:
    first = blocks[0].header
    expected = math.prod(first.layer_shape[: first.row_dims])
    reached = 0
    for row in (block.header for block in blocks):
        if row.layer_shape != first.layer_shape or row.row_dims != first.row_dims:
            raise IncompleteDataset(f"its row blocks disagree on the layer's shape; {_RERUN}", layer=name)
        if row.row_start != reached:
            what = "are missing" if row.row_start > reached else "appear twice"
            low, high = sorted((reached, row.row_start))
            raise IncompleteDataset(f"rows {low} to {high} of {expected} {what}; {_RERUN}", layer=name)
        reached = row.row_stop
    if reached != expected:
        raise IncompleteDataset(f"has only rows up to {reached} of {expected}; {_RERUN}", layer=name)


def _combine(blocks: Sequence[RowRecord]) -> LayerMetrics:
    rows = [block.header for block in blocks]
    ranges = [block.ranges for block in blocks]
    measured = [block.errors for block in blocks if block.errors is not None]
    return LayerMetrics(
        layer_name=rows[0].layer_name,
        layer_type=layer_type(rows[0].layer_name),
        shape=rows[0].layer_shape,
        dtype=rows[0].dtype,
        quant_type=_joined(row.quant_type for row in rows) or "none",
        method=_joined(block.method for block in blocks) or "",
        quant_axis=max(row.quant_axis for row in rows),
        group_size=max(row.group_size for row in rows),
        row_blocks=len(blocks),
        params=sum(row.num_params for row in rows),
        source_nbytes=sum(block.source_nbytes for block in blocks),
        data_nbytes=sum(of.data.nbytes for of in ranges),
        scales_nbytes=sum(of.scales.nbytes for of in ranges),
        zero_points_nbytes=sum(of.zero_points.nbytes for of in ranges),
        stored_nbytes=sum(value.stored_nbytes for of in ranges for value in of),
        kept_reason=_joined((block.kept_reason for block in blocks), "; "),
        errors=sum(measured[1:], start=measured[0]) if measured else None,
    )


def _joined(values: Iterable[str | None], separator: str = "+") -> str | None:
    return separator.join(dict.fromkeys(value for value in values if value)) or None
