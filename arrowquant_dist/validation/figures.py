"""Results of a validation as dataclasses, whose `to_dict` returns plain JSON values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.layer_rows import LayerRow

VALIDATION_VERSION = 1  # of to_dict: goes up when a field is removed, or changes its meaning

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
    """The machine that the validation ran on.

    disk_nbytes, disk_free_nbytes: size of the file system that OUT is on, and its free bytes; None for object storage.
    versions: {package: version} of installed packages.
    """

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
    """The checkpoint that was quantized.

    name: the source as it was given. nbytes: size of all values in their own dtypes. fp16_nbytes: size of all values
    with 2 bytes for each float. dtypes: {dtype: number of values}, most frequent first. file_nbytes: size of the files
    with weights.
    """

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
    """How long it takes to read all layers of a dataset or of the source, one after the other, decoded to their dtype.

    name: `source`, `V1` or name of a config. seconds: median of `runs`. runs: seconds of each repetition, after a first
    one that is not counted: kernels are then compiled, and the files are in the system's cache. stored_nbytes: number
    of bytes read. decoded_nbytes: size of all decoded values. verified: whether checksums were compared while reading;
    V1 and other checkpoints have none.
    """

    name: str
    seconds: float
    runs: tuple[float, ...]
    stored_nbytes: int
    decoded_nbytes: int
    verified: bool


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory of a fresh process that loads all layers and keeps them, in addition to what it has before it
    loads them. peak_nbytes: maximum while loading. kept_nbytes: memory at the end."""

    peak_nbytes: int
    kept_nbytes: int


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory for the weights of the source or of a dataset. decoded: memory of a process that keeps decoded values.
    codes: memory of a process that keeps codes and scales; None for the source, which has no codes. reason: why either
    was not measured, else empty."""

    name: str
    file_nbytes: int
    decoded: Resident | None
    codes: Resident | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that either holds or does not. config: name of the config whose dataset was checked; empty for a check
    of the source. said: what was looked at, what is wrong, or why it was not checked."""

    category: str
    name: str
    config: str
    status: Status
    said: str


@dataclass(frozen=True, slots=True)
class Compression:
    """Compression ratios against the source at fp16, and what the part files consist of.

    theoretical: 16 bits divided by the bits of a code, over the quantized layers; None if there are none. uncompressed:
    ratio with scales, zero points and kept layers, but without Parquet's compression and framing. actual: ratio of the
    part files. efficiency: `actual` divided by `theoretical`. scales_nbytes: size of scales and zero points before
    compression. kept_nbytes: stored size of layers that are not quantized. framing_nbytes: what the part files have in
    addition to stored layers. parts_nbytes: size of the part files.
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
    """Times of the run that completed the dataset.

    wall_seconds: duration of that run. seconds: the same, but None if an earlier run had finished some shards, so that
    wall_seconds is not the time for all of them. measured_now: whether that run was part of this validation.
    resumed_shards: number of shards, out of `shards`, that an earlier run had finished. phases: seconds of the driver's
    phases. worker_phases: seconds of the workers' phases, summed over all workers.
    """

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
    """Quantized layers whose cosine is in [low, high), or in [low, high] for the highest bin."""

    low: float
    high: float
    label: str
    layers: int
    share: float


@dataclass(frozen=True, slots=True)
class DatasetFigures:
    """The dataset of one config. name: name of the config. target: where the dataset is, without credentials.
    distribution: bins of the weights' cosines, highest first. evaluation: comparison of its outputs with the
    original's; None if they were not measured, and `no_evaluation` says why."""

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
    """One thing that has to hold. key: key in the file of targets, or name of the check. target, result: texts for
    display. said: what else to know about the result, or why there is none."""

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
    """Something that readers of the figures have to know. name: does not change between versions."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Validation:
    """What `validate` found.

    out: where the report was written, without credentials. started_at: start, ISO 8601 in UTC. seconds: duration of the
    validation. targets: name of the file of targets. texts: name of the texts that outputs were measured with.
    environment: machine and versions. source: layers and sizes of the source. source_load: load time of the source.
    v1_load: load time of the source as a V1 file; None if none was written. source_memory: memory for the source's
    weights. datasets: figures of each config's dataset. checks: results of all checks. criteria: what had to hold, and
    whether it did. notes: what the figures do not say by themselves.
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
        """Whether all criteria were met."""
        return all(one.status == PASSED for one in self.criteria)

    def to_dict(self) -> dict[str, Any]:
        """The validation as plain values that can be written as JSON."""
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
