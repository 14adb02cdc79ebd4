"""Memory of processes while shards were made, as measured at the end of each shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from arrowquant_dist.target.receipt import Receipt

MOST_SERIES = 6
MOST_POINTS = 120  # maximum number of points of a series

_COLUMNS = ("seconds", "resident_nbytes", "peak_nbytes")

_Measured = tuple[float, Receipt]  # (seconds since the run began, receipt)


@dataclass(frozen=True, slots=True)
class MemorySeries:
    """Memory of one process over time, or of the largest of several, each as it was last measured: of a node's
    processes where there are more than MOST_SERIES of them, of all where there are more nodes than that.

    name: the process, `host/pid`, or the node; empty for all. processes: number of processes. workers: largest number
    of threads of a process. The others are columns, by rising time, with a value for each shard; with several processes
    or more than MOST_POINTS shards, the largest value of each step of time. resident_nbytes: resident memory when a
    shard's part was complete; None where the system does not report it. peak_nbytes: the highest until then, since the
    process began.
    """

    name: str
    processes: int
    workers: int
    seconds: tuple[float, ...]
    resident_nbytes: tuple[int | None, ...]
    peak_nbytes: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), **{name: list(getattr(self, name)) for name in _COLUMNS}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError where the columns have different lengths, or none."""
        columns = {name: tuple(values[name]) for name in _COLUMNS}
        lengths = {*map(len, columns.values())}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError("a series' columns have different lengths, or are empty")
        return cls(**{**values, **columns})


def memory_series(measured: Sequence[_Measured], seconds: float) -> tuple[MemorySeries, ...]:
    """The series of a run. seconds: duration of the run."""
    named: tuple[Callable[[Receipt], str], ...] = (
        lambda receipt: receipt.worker,
        lambda receipt: receipt.node,
        lambda _: "",
    )
    by_name: dict[str, list[_Measured]] = {}
    for name_of in named:
        by_name = {}
        for at, receipt in sorted(measured, key=lambda one: (one[0], one[1].shard)):
            by_name.setdefault(name_of(receipt), []).append((at, receipt))
        if len(by_name) <= MOST_SERIES:
            break
    return tuple(_series(name, own, seconds / MOST_POINTS) for name, own in by_name.items())


def _series(name: str, measured: Sequence[_Measured], step: float) -> MemorySeries:
    threads: dict[str, set[int]] = {}
    for _, receipt in measured:
        threads.setdefault(receipt.worker, set()).add(receipt.thread)
    is_each_shard = len(threads) == 1 and len(measured) <= MOST_POINTS
    points = [[one] for one in measured] if is_each_shard else _in_steps(measured, step)
    last: dict[str, Receipt] = {}
    resident, peaks = [], []
    for point in points:
        now = [receipt for _, receipt in point]
        workers = {receipt.worker for receipt in now}
        now += [receipt for worker, receipt in last.items() if worker not in workers]
        resident.append(_largest(receipt.resident_nbytes for receipt in now))
        peaks.append(max(receipt.peak_memory_nbytes for receipt in now))
        last |= {receipt.worker: receipt for _, receipt in point}
    at = tuple(point[-1][0] for point in points)
    return MemorySeries(
        name, len(threads), max(map(len, threads.values())), at, tuple(resident), tuple(peaks)
    )


def _in_steps(measured: Sequence[_Measured], step: float) -> list[list[_Measured]]:
    """The measurements in steps of time, at most MOST_POINTS of them."""
    found: dict[int, list[_Measured]] = {}
    for one in measured:
        found.setdefault(min(int(one[0] / step), MOST_POINTS - 1), []).append(one)
    return [*found.values()]


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
