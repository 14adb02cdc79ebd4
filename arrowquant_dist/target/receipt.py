"""What a worker returns for a finished shard: names, places, sizes, hashes, metrics. Never weights."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.format.record import RowRecord


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard. part: path under the target. nbytes, hash (`xxh3_128:<hex>`): of the part file.

    seconds: of `read`, `quantize` and `write`, which overlap, each how long something of it was at work or waited for
    the storage. wall_seconds: from the start of this attempt to its commit. peak_memory_nbytes: peak resident set of
    the worker's process so far. worker: the process, `host/pid`; node: its machine, as the engine names it.
    read_nbytes, written_nbytes, retries: of this attempt's requests.

    started_at: when this attempt began, in seconds since 1970 (UTC) by its machine's clock, which may be another than
    the driver's. resident_nbytes: resident set of the process when the part was complete, None where the system does
    not say. thread: which of the process's workers it was, by a number that each of them has for itself. Commits of
    version 3 have none of the three.
    """

    shard: int
    attempt: str
    part: str
    nbytes: int
    hash: str
    rows: tuple[RowRecord, ...]
    seconds: dict[str, float]
    peak_memory_nbytes: int
    worker: str
    node: str
    wall_seconds: float
    read_nbytes: int
    written_nbytes: int
    retries: int
    started_at: float | None = None
    resident_nbytes: int | None = None
    thread: int = 0

    @property
    def notice(self) -> None:
        """Nothing: the commit says all of it."""
        return
