"""What a worker returns for a finished shard: names, places, sizes, hashes, metrics. Never weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from arrowquant_dist.format.record import RowRecord, StoredRange
from arrowquant_dist.metrics import ErrorSums


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard. part: path under the target. nbytes, hash (`xxh3_128:<hex>`): of the part file.

    seconds: of `read`, `quantize` and `write`, which overlap, each how long something of it was at work or waited for
    the storage. wall_seconds: from the start of this attempt to its commit. peak_memory_nbytes: peak resident set of
    the worker's process so far. worker: the process, `host/pid`; node: its machine, as the engine names it.
    read_nbytes, written_nbytes, retries: of this attempt's requests.
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Receipt:
        return cls(**{**values, "rows": tuple(_row_from_dict(row) for row in values["rows"])})


def _row_from_dict(values: dict[str, Any]) -> RowRecord:
    ranges = {k: StoredRange(**values[k]) for k in ("data", "scales", "zero_points", "chunk_digests")}
    errors = values["errors"]
    return RowRecord(
        **{
            **values,
            **ranges,
            "shape": tuple(values["shape"]),
            "layer_shape": tuple(values["layer_shape"]),
            "errors": ErrorSums.from_dict(errors) if errors is not None else None,
        }
    )
