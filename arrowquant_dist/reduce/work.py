"""Who did the work, how fast, and how much of it was lost: sums of receipts and of the engine's facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from arrowquant_dist.reduce.facts import RunFacts
from arrowquant_dist.reduce.ratios import ratio
from arrowquant_dist.target.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Work:
    """Sums over attempts that counted.

    source_nbytes: size of the weights in the source's dtypes. read_nbytes, written_nbytes: bytes from and to storage,
    with repeated requests. part_nbytes: size of the parts. busy_seconds: time of workers from the start of an attempt
    to its commit.
    """

    shards: int
    source_nbytes: int
    part_nbytes: int
    read_nbytes: int
    written_nbytes: int
    request_retries: int
    busy_seconds: float

    @classmethod
    def of(cls, receipts: Iterable[Receipt]) -> Self:
        receipts = list(receipts)
        return cls(
            shards=len(receipts),
            source_nbytes=sum(map(source_nbytes, receipts)),
            part_nbytes=sum(receipt.nbytes for receipt in receipts),
            read_nbytes=sum(receipt.read_nbytes for receipt in receipts),
            written_nbytes=sum(receipt.written_nbytes for receipt in receipts),
            request_retries=sum(receipt.retries for receipt in receipts),
            busy_seconds=sum(receipt.wall_seconds for receipt in receipts),
        )


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a dataset that one node, or one worker's process, made. name: the node's, or `host/pid`.

    source_nbytes_per_second: per busy second; None where its attempts took no time.
    """

    name: str
    workers: int
    shards: int
    source_nbytes: int
    part_nbytes: int
    busy_seconds: float
    source_nbytes_per_second: float | None


@dataclass(frozen=True, slots=True)
class WorkFigures:
    """How the work went.

    this_run: what was committed during the last run, also by another driver at the same target. earlier_runs: what it
    found committed. nodes, workers: those of both, the fastest first.

    Figures of the last run alone, None where its engine had nothing to do or did not report:
    efficiency: this_run.busy_seconds over the seconds that workers were there (idle ones are Ray's start, the tail, and
    waiting for work). wasted_share: part of these seconds in attempts that did not count. read_per_source: bytes read
    from storage for each byte of weights; it is at least 1, and more with repeated requests and repeated reads.
    """

    this_run: Work
    earlier_runs: Work
    nodes: tuple[Share, ...]
    workers: tuple[Share, ...]
    efficiency: float | None
    wasted_share: float | None
    read_per_source: float | None

    @classmethod
    def of(cls, receipts: Sequence[Receipt], run: RunFacts) -> Self:
        earlier = set(run.resumed_shards)
        this_run = Work.of(receipt for receipt in receipts if receipt.shard not in earlier)
        return cls(
            this_run=this_run,
            earlier_runs=Work.of(receipt for receipt in receipts if receipt.shard in earlier),
            nodes=_shares(receipts, lambda receipt: receipt.node),
            workers=_shares(receipts, lambda receipt: receipt.worker),
            efficiency=ratio(this_run.busy_seconds, run.worker_seconds),
            wasted_share=ratio(run.wasted_seconds, run.worker_seconds),
            read_per_source=ratio(this_run.read_nbytes, this_run.source_nbytes),
        )

    def to_dict(self) -> dict[str, Any]:
        lists = {name: [asdict(share) for share in getattr(self, name)] for name in ("nodes", "workers")}
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        works = {name: Work(**values[name]) for name in ("this_run", "earlier_runs")}
        lists = {name: tuple(Share(**share) for share in values[name]) for name in ("nodes", "workers")}
        return cls(**{**values, **works, **lists})


def source_nbytes(receipt: Receipt) -> int:
    return sum(row.source_nbytes for row in receipt.rows)


def _shares(receipts: Iterable[Receipt], name_of: Callable[[Receipt], str]) -> tuple[Share, ...]:
    by_name: dict[str, list[Receipt]] = {}
    for receipt in receipts:
        by_name.setdefault(name_of(receipt), []).append(receipt)
    shares = [_share(name, own) for name, own in by_name.items()]
    return tuple(sorted(shares, key=lambda share: (-(share.source_nbytes_per_second or 0.0), share.name)))


def _share(name: str, receipts: Sequence[Receipt]) -> Share:
    work = Work.of(receipts)
    return Share(
        name=name,
        workers=len({receipt.worker for receipt in receipts}),
        shards=work.shards,
        source_nbytes=work.source_nbytes,
        part_nbytes=work.part_nbytes,
        busy_seconds=work.busy_seconds,
        source_nbytes_per_second=ratio(work.source_nbytes, work.busy_seconds),
    )
