"""Facts that receipts do not tell: about the run and the driver's machine."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

from arrowquant_dist.machine import usable_cpus

_PACKAGES = ("arrowquant-dist", "numpy", "numba", "pyarrow", "ray", "torch")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The driver's machine, without anything that names it. cpus: number that this process may use."""

    system: str
    cpus: int
    memory_nbytes: int
    python: str
    versions: dict[str, str]

    @classmethod
    def here(cls) -> HostFacts:
        """The facts of this machine. Versions come from package metadata, so nothing heavy is imported."""
        import psutil

        return cls(
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            cpus=usable_cpus(),
            memory_nbytes=int(psutil.virtual_memory().total),
            python=platform.python_version(),
            versions={name: version for name in _PACKAGES if (version := _version(name)) is not None},
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HostFacts:
        return cls(**values)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The run as the driver saw it.

    engine: `inline` or `ray`. started_at: ISO 8601 with time zone. wall_seconds: duration on the driver, from planning
    to the report. phases: seconds of these for `planning` (headers, plan, listing the target), `running` (the engine),
    `reducing` (receipts and layers) and `publishing` (index and sidecars; report and manifest come after).
    resumed_shards: indices of the shards whose receipts an earlier run had left at the target; their work does not
    count in this run's throughput. shard_retries … worker_seconds: see engine.EngineFacts.
    """

    engine: str
    workers: int
    started_at: str
    wall_seconds: float
    resumed_shards: tuple[int, ...]
    host: HostFacts
    phases: dict[str, float] = field(default_factory=dict)
    shard_retries: int = 0
    stolen: int = 0
    wasted_seconds: float = 0.0
    worker_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "resumed_shards": list(self.resumed_shards)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunFacts:
        host = HostFacts.from_dict(values["host"])
        return cls(**{**values, "resumed_shards": tuple(values["resumed_shards"]), "host": host})


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
