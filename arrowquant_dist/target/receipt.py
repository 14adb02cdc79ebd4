"""What a worker returns for a finished shard: names, places, sizes, hashes, metrics. Never weights."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.format.record import RowRecord


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a worker reports of a finished shard.

    part: path under the target.
    nbytes, hash (`xxh3_128:<hex>`): of the part file.
    seconds: {phase: seconds} for `read`, `quantize` and `write`, which overlap; each is the time during which the phase
        was at work or waited for the storage.
    peak_memory_nbytes: peak resident set of the worker's process so far.
    worker: the process, as `host/pid`.
    node: its machine, as the engine names it.
    wall_seconds: from the start of this attempt to its commit.
    read_nbytes, written_nbytes, retries: totals of this attempt's requests.

    Commits of version 3 lack the following:

    started_at: when this attempt began, in seconds since 1970 (UTC) by its machine's clock, which may differ from the
        driver's.
    resident_nbytes: resident set of the process when the part was complete, None if the system does not tell.
    thread: a number that tells apart the workers of one process.
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
        """None: the commit says everything that there is to say."""
        return
