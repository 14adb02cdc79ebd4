"""A plan in figures, for `--dry-run`: costs and exceptions before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from arrowquant_dist.config import RunConfig
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.plan.blocks import Plan
from arrowquant_dist.plan.layers import PlannedLayer, StoredSizes, planned_layers, too_wide_notes
from arrowquant_dist.plan.memory import worker_memory_nbytes

SUMMARY_VERSION = 1  # of its JSON


@dataclass(frozen=True, slots=True)
class TypeTotals:
    """Totals of what is stored as one quant type. source_nbytes: size in the source's dtypes, or as stored in the
    source for codes that are kept. expected_nbytes: size before compression."""

    layers: int
    params: int
    source_nbytes: int
    expected_nbytes: int


@dataclass(frozen=True, slots=True)
class ShardsThere:
    """How much of the plan is at the target already. state: `empty`, `started` or `finished`; `replaced` if
    --overwrite would clear something there. done: number of committed shards."""

    state: Literal["empty", "started", "finished", "replaced"]
    done: int


@dataclass(frozen=True, slots=True)
class UnquantizedLayer:
    """A layer that stays unquantized. is_matrix: whether it is a float layer with 2 or more dimensions above 1, so
    kept by choice or family."""

    layer_name: str
    shape: tuple[int, ...]
    dtype: str
    quant_type: str
    reason: str
    is_matrix: bool


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan in figures.

    types: {quant_type: totals}, largest first.
    source_dtypes: {dtype: number of layers}.
    worker_memory_nbytes: upper bound of one worker's memory.
    kept: every layer that stays unquantized, in the order of the source; print `kept_matrices` by name, the rest as
        `kept_reasons` counts them.
    left_out: as in Plan; the notes summarize it.
    kept_codes: {layer: format of its codes} for layers that keep the source's codes.
    config: as in Plan; if a size was asked for, the config that was chosen for it.
    planned: every layer, in the order of the source.
    stored_nbytes: estimated size of the part files; None if it was not estimated.
    there: what the target holds; None if nobody looked.
    """

    source: str
    format: str
    fingerprint: str
    layers: int
    row_blocks: int
    shards: int
    params: int
    source_nbytes: int
    expected_nbytes: int
    worker_memory_nbytes: int
    compression: str
    types: dict[str, TypeTotals]
    source_dtypes: dict[str, int]
    kept: tuple[UnquantizedLayer, ...]
    notes: tuple[str, ...]
    left_out: dict[str, str]
    kept_codes: dict[str, str]
    config: dict[str, Any]
    planned: tuple[PlannedLayer, ...]
    stored_nbytes: int | None
    there: ShardsThere | None

    @property
    def quantized_layers(self) -> int:
        return self.layers - len(self.kept)

    @property
    def kept_matrices(self) -> tuple[UnquantizedLayer, ...]:
        return tuple(layer for layer in self.kept if layer.is_matrix)

    @property
    def kept_reasons(self) -> dict[str, int]:
        """{reason: number of layers}, most frequent first."""
        return dict(Counter(layer.reason for layer in self.kept).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`; totals and layers as in the output of `inspect`."""
        return {
            "schema_version": SUMMARY_VERSION,
            "source": self.source,
            "format": self.format,
            "fingerprint": self.fingerprint,
            "totals": {
                "layers": self.layers,
                "quantized_layers": self.quantized_layers,
                "row_blocks": self.row_blocks,
                "shards": self.shards,
                "params": self.params,
                "source_nbytes": self.source_nbytes,
                "expected_nbytes": self.expected_nbytes,
                "stored_nbytes": self.stored_nbytes,
            },
            "target": asdict(self.there) if self.there is not None else None,
            "worker_memory_nbytes": self.worker_memory_nbytes,
            "compression": self.compression,
            "types": {name: asdict(totals) for name, totals in self.types.items()},
            "source_dtypes": self.source_dtypes,
            "layers": [layer.to_dict() for layer in self.planned],
            "notes": list(self.notes),
            "left_out": self.left_out,
            "config": self.config,
        }


def summarize(
    plan: Plan,
    target: str,
    run: RunConfig,
    stored: StoredSizes | None = None,
    there: ShardsThere | None = None,
) -> PlanSummary:
    """The plan in figures. target, run: of the run that the plan is for, since a worker's memory depends on them.
    stored, there: estimated sizes and the state of the target, if known."""
    blocks = list(plan.blocks)
    first = [block for block in blocks if block.row_start == 0]  # one block of each layer
    planned = planned_layers(plan, stored)
    types = {name: _totals(name, planned) for name in {layer.quant_type for layer in planned}}
    ranked = sorted(types.items(), key=lambda pair: (-pair[1].source_nbytes, pair[0]))
    return PlanSummary(
        source=plan.source["uri"],
        format=plan.source["format"],
        fingerprint=plan.fingerprint,
        layers=len(first),
        row_blocks=len(blocks),
        shards=len(plan.shards),
        params=sum(totals.params for totals in types.values()),
        source_nbytes=sum(totals.source_nbytes for totals in types.values()),
        expected_nbytes=sum(totals.expected_nbytes for totals in types.values()),
        worker_memory_nbytes=worker_memory_nbytes(plan, target, run),
        compression=plan.compression,
        types=dict(ranked),
        source_dtypes=dict(Counter(block.layer.dtype for block in first).most_common()),
        kept=tuple(_kept(layer, layer.kept_reason) for layer in planned if layer.kept_reason is not None),
        notes=(*plan.notes, *_wider_than_asked(planned, stored)),
        left_out=plan.left_out,
        kept_codes={b.layer.name: b.layer.encoding.label for b in first if b.spec.keeps_codes},
        config=dict(plan.config),
        planned=planned,
        stored_nbytes=stored.parts_nbytes if stored is not None else None,
        there=there,
    )


def _totals(quant_type: str, planned: Sequence[PlannedLayer]) -> TypeTotals:
    own = [layer for layer in planned if layer.quant_type == quant_type]
    return TypeTotals(
        layers=len(own),
        params=sum(layer.params for layer in own),
        source_nbytes=sum(layer.source_nbytes for layer in own),
        expected_nbytes=sum(layer.expected_nbytes for layer in own),
    )


def _kept(layer: PlannedLayer, reason: str) -> UnquantizedLayer:
    wide = sum(size > 1 for size in layer.shape)
    is_matrix = wide >= 2 and DTYPES[layer.dtype].is_float and layer.params > 0
    return UnquantizedLayer(layer.layer_name, layer.shape, layer.dtype, layer.quant_type, reason, is_matrix)


def _wider_than_asked(planned: Sequence[PlannedLayer], stored: StoredSizes | None) -> list[str]:
    wider = [
        layer.layer_name for layer in planned if stored is not None and layer.layer_name in stored.too_wide
    ]
    return too_wide_notes(wider)
