"""Receipts of shards that were made at the times and by the workers that a test gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from arrowquant_dist.reduce.timeline import Timeline
from arrowquant_dist.target.receipt import Receipt
from tests.reduce.made import RUN, receipts_of

BEGAN = datetime.fromisoformat(RUN.started_at).timestamp()
BOUND = 400 << 20
_RECEIPT = replace(receipts_of()[0], rows=(), resident_nbytes=90 << 20)


def attempt(shard: int, start: float, seconds: float, worker: str = "n/1", **other: Any) -> Receipt:
    """A receipt. start: seconds after the run began. A fifth of `seconds` goes into reading, three fifths into
    quantizing."""
    phases = {"read": 0.2 * seconds, "quantize": 0.6 * seconds, "write": 0.1 * seconds, "compile": 0.0}
    node = other.pop("node", worker.partition("/")[0])
    return replace(
        _RECEIPT,
        shard=shard,
        started_at=BEGAN + start,
        wall_seconds=seconds,
        seconds=phases,
        worker=worker,
        node=node,
        **other,
    )


def timeline_of(
    receipts: Iterable[Receipt], wall_seconds: float = 10.0, resumed: tuple[int, ...] = ()
) -> Timeline:
    run = replace(RUN, wall_seconds=wall_seconds, resumed_shards=resumed)
    return Timeline.of(receipts, run, BOUND)


def cluster(workers: int, shards: int) -> list[Receipt]:
    """Receipts of shards that `workers` workers, four per node, made in turn within 10 seconds."""
    each = 9.0 * workers / shards
    return [
        attempt(
            index,
            0.5 + each * (index // workers),
            0.9 * each,
            f"node-{index % workers // 4:03d}/{index % workers}",
            resident_nbytes=(80 + index % 7) << 20,
        )
        for index in range(shards)
    ]
