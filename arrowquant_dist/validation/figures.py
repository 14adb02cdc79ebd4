"""What a validation found, as data: plain values that `to_dict` gives as JSON has them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.layer_rows import LayerRow

VALIDATION_VERSION = 1  # of to_dict: goes up when a field goes, or means something else

Status = Literal["pass", "fail", "not measured"]
PASSED: Status = "pass"
FAILED: Status = "fail"
NOT_MEASURED: Status = "not measured"
MODEL, COMPRESSION, ACCURACY, SCHEMA, PERFORMANCE = (
    "real model quantization",
    "compression",
    "accuracy",
    "schema",
    "performance",
)
CATEGORIES = (MODEL, COMPRESSION, ACCURACY, SCHEMA, PERFORMANCE)


@dataclass(frozen=True, slots=True)
class Environment:
    """Where it was measured. disk_nbytes, disk_free_nbytes: of the file system that OUT is on; None of object stores.
    versions: of packages that are installed."""

    cpu: str
    cpus: int
    memory_nbytes: int
    disk_nbytes: int | None
    disk_free_nbytes: int | None
    system: str
    python: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """What was quantized. name: as it was given. nbytes: of all values, in their own dtypes. fp16_nbytes: of the same
    with floats at 2 bytes. dtypes: {dtype: values}, the most first. file_nbytes: of the files with weights."""

    name: str
    uri: str
    format: str
    layers: int
    params: int
    nbytes: int
    fp16_nbytes: int
    dtypes: dict[str, int]
    file_nbytes: int


@dataclass(frozen=True, slots=True)
class LoadTime:
    """How long it takes to have all layers of a dataset, or of the source, as values in their dtype, one after the
    other.

    name: `source`, `V1` or a config's. seconds: the middle one of `runs`, which are repeated when everything is
    compiled and what is read is in the system's cache. stored_nbytes: that were read. decoded_nbytes: of all values.
    verified: whether checksums were compared on the way; V1 and other checkpoints have none.
    """

    name: str
    seconds: float
    runs: tuple[float, ...]
    stored_nbytes: int
    decoded_nbytes: int
    verified: bool


@dataclass(frozen=True, slots=True)
class Resident:
    """Of a fresh process that loads all layers and keeps them, beside what it has when the first is read. peak_nbytes:
    resident at most meanwhile. kept_nbytes: at the end."""

    peak_nbytes: int
    kept_nbytes: int


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """decoded, codes: of processes that keep values, or codes and scales. codes is None of the source, which has none.
    reason: why either is not measured, else empty."""

    name: str
    file_nbytes: int
    decoded: Resident | None
    codes: Resident | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that holds or not. config: of whose dataset; empty where it is of none. said: what was looked at, what
    is wrong, or why it was not looked at."""

    category: str
    name: str
    config: str
    status: Status
    said: str


@dataclass(frozen=True, slots=True)
class Compression:
    """theoretical: 16 bits over those of a code. uncompressed: with scales, zero points and kept layers, but without
    compression and framing. actual: of the part files. All against the source at fp16; None where nothing is
    quantized. efficiency: actual over theoretical.

    scales_share, kept_share, framing_share: of the part files.
    """

    theoretical: float | None
    uncompressed: float | None
    actual: float | None
    efficiency: float | None
    scales_nbytes: int
    kept_nbytes: int
    framing_nbytes: int
    parts_nbytes: int


@dataclass(frozen=True, slots=True)
class Speed:
    """Of the run that completed the dataset. measured_now: whether that was this validation. resumed_shards: of
    `shards`, those that an earlier run had finished, so that wall_seconds is not the time of all; then, and only then,
    seconds is None. phases: of the driver. worker_phases: of the workers, added up over them."""

    wall_seconds: float
    seconds: float | None
    measured_now: bool
    started_at: str
    shards: int
    resumed_shards: int
    workers: int
    phases: dict[str, float]
    worker_phases: dict[str, float]


@dataclass(frozen=True, slots=True)
class Bin:
    """Quantized layers whose cosine is in [low, high); of the highest bin high belongs to it."""

    low: float
    high: float
    label: str
    layers: int
    share: float


@dataclass(frozen=True, slots=True)
class DatasetFigures:
    """One config's dataset. name: the config's. target: where it is, safe to show. evaluation: of its outputs; None
    where `no_evaluation` says why not. distribution: of the weights' cosines, the highest first."""

    name: str
    target: str
    report: ReportFigures
    layers: tuple[LayerRow, ...]
    compression: Compression
    speed: Speed
    distribution: tuple[Bin, ...]
    load: LoadTime
    memory: MemoryUse
    evaluation: Evaluation | None
    no_evaluation: str

    def to_dict(self) -> dict[str, Any]:
        report = self.report.to_dict()
        evaluation = self.evaluation.to_dict() if self.evaluation is not None else None
        return {
            "config": self.name,
            "target": self.target,
            **{key: report[key] for key in ("totals", "quant_types", "accuracy", "layer_types")},
            "compression": asdict(self.compression),
            "distribution": [asdict(one) for one in self.distribution],
            "speed": asdict(self.speed),
            "load": _with_lists(asdict(self.load)),
            "memory": asdict(self.memory),
            "evaluation": evaluation,
            "no_evaluation": self.no_evaluation,
        }


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that has to hold. key: of the targets' file, or the check's name. target, result: as people read them.
    said: what a result is about, or why there is none."""

    category: str
    key: str
    label: str
    config: str
    target: str
    result: str
    status: Status
    said: str = ""


@dataclass(frozen=True, slots=True)
class NamedNote:
    """Something that has to be known to read the figures, by a name that stays."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Validation:
    """What `validate` found.

    out: where it is written, safe to show. started_at: UTC. seconds: that it took. targets: the file of what has to
    hold. texts: what outputs were measured with. environment: machine and versions. source: its layers and sizes.
    source_load, v1_load: how long the source, and the V1 of a dataset, take to load; None without a V1. source_memory:
    that its weights take. datasets: one a config. checks: of schemas. criteria: what had to hold, and whether it did.
    notes: what the figures do not say by themselves.
    """

    out: str
    started_at: str
    seconds: float
    targets: str
    texts: str
    environment: Environment
    source: SourceFigures
    source_load: LoadTime
    v1_load: LoadTime | None
    source_memory: MemoryUse
    datasets: tuple[DatasetFigures, ...]
    checks: tuple[Check, ...]
    criteria: tuple[Criterion, ...]
    notes: tuple[NamedNote, ...]

    @property
    def is_accepted(self) -> bool:
        """Whether all of the criteria were met."""
        return all(one.status == PASSED for one in self.criteria)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON as they are."""
        return {
            "schema_version": VALIDATION_VERSION,
            "is_accepted": self.is_accepted,
            "out": self.out,
            "started_at": self.started_at,
            "seconds": self.seconds,
            "targets": self.targets,
            "texts": self.texts,
            "environment": asdict(self.environment),
            "source": {
                **asdict(self.source),
                "load": _with_lists(asdict(self.source_load)),
                "memory": asdict(self.source_memory),
            },
            "v1_load": _with_lists(asdict(self.v1_load)) if self.v1_load is not None else None,
            "datasets": [one.to_dict() for one in self.datasets],
            "checks": [asdict(one) for one in self.checks],
            "criteria": [asdict(one) for one in self.criteria],
            "notes": [asdict(one) for one in self.notes],
        }


def _with_lists(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
