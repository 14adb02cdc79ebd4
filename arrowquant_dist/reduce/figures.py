"""The report as data: frozen, versioned, and valid JSON (figures that are not finite are null)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.field_types import check_types
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.reduce.facts import RunFacts
from arrowquant_dist.reduce.ratios import finite, ratio
from arrowquant_dist.reduce.timeline import Timeline
from arrowquant_dist.reduce.versions import REPORT_VERSION, upgraded
from arrowquant_dist.reduce.work import WorkFigures


def is_measured(sums: ErrorSums) -> bool:
    """Whether figures can be derived from `sums`: there are values, and no sum left the range of float64."""
    return sums.count > 0 and all(map(math.isfinite, (sums.sum_w2, sums.sum_d2, sums.sum_e2, sums.max_error)))


@dataclass(frozen=True, slots=True)
class Stat:
    """Mean, extremes and standard deviation (ddof 0) of a figure over layers; each layer counts once."""

    mean: float
    min: float
    max: float
    std: float

    @classmethod
    def over(cls, values: Iterable[float]) -> Stat | None:
        """Statistics of the finite ones of `values`; None where there are none."""
        kept = [float(value) for value in values if math.isfinite(value)]
        if not kept:
            return None
        mean = math.fsum(kept) / len(kept)
        variance = math.fsum((value - mean) ** 2 for value in kept) / len(kept)
        return cls(mean, min(kept), max(kept), math.sqrt(variance))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of some layers, in bytes.

    source_nbytes: in the source's dtypes; for codes that are kept, as the source stores them. fp16_nbytes: 2 a value
    for floating-point layers (8-bit floats, too), the own size of integer and bool layers. data_nbytes, scales_nbytes,
    zero_points_nbytes: uncompressed. stored_nbytes: these values as they are in the parts, compressed, without
    Parquet's framing.
    """

    layers: int
    params: int
    source_nbytes: int
    fp16_nbytes: int
    data_nbytes: int
    scales_nbytes: int
    zero_points_nbytes: int
    stored_nbytes: int

    @property
    def compression_vs_source(self) -> float | None:
        return ratio(self.source_nbytes, self.stored_nbytes)

    @property
    def compression_vs_fp16(self) -> float | None:
        return ratio(self.fp16_nbytes, self.stored_nbytes)

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "compression_vs_source": self.compression_vs_source,
            "compression_vs_fp16": self.compression_vs_fp16,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Totals(Sizes):
    """Sizes of the whole dataset.

    parts_nbytes: size of the part files, framing included; both ratios refer to it. shards: number of shards. aliases:
    number of tied tensors that are stored under another name; they count nowhere else.
    """

    parts_nbytes: int
    shards: int
    aliases: int

    @property
    def compression_vs_source(self) -> float | None:
        return ratio(self.source_nbytes, self.parts_nbytes)

    @property
    def compression_vs_fp16(self) -> float | None:
        return ratio(self.fp16_nbytes, self.parts_nbytes)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far the decoded weights of quantized layers are from the source's. Kept layers, and layers whose codes are
    the source's, do not count: they have no error.

    A Stat is over layers. sqnr_db leaves out the lossless_layers, whose SQNR is infinite. overall_…: all values of
    these layers taken as one vector. unmeasured_layers: quantized layers that are empty, or too large for sums in
    float64; they are in no figure here.
    """

    layers: int
    unmeasured_layers: int
    cosine: Stat | None
    precision_loss: Stat | None
    mse: Stat | None
    sqnr_db: Stat | None
    max_error: float | None
    lossless_layers: int
    overall_cosine: float | None
    overall_mse: float | None
    overall_sqnr_db: float | None

    @classmethod
    def over(cls, errors: Sequence[ErrorSums | None]) -> Accuracy | None:
        """`errors`: those of each quantized layer. None where there are no such layers, or none is measured."""
        measured = [sums for sums in errors if sums is not None and is_measured(sums)]
        if not measured:
            return None
        overall = sum(measured, start=ErrorSums())
        return cls(
            layers=len(measured),
            unmeasured_layers=len(errors) - len(measured),
            cosine=Stat.over(sums.cosine for sums in measured),
            precision_loss=Stat.over(sums.precision_loss for sums in measured),
            mse=Stat.over(sums.mse for sums in measured),
            sqnr_db=Stat.over(sums.sqnr_db for sums in measured),
            max_error=finite(overall.max_error),
            lossless_layers=sum(sums.sum_e2 == 0.0 for sums in measured),
            overall_cosine=overall.cosine if is_measured(overall) else None,
            overall_mse=finite(overall.mse),
            overall_sqnr_db=finite(overall.sqnr_db),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Accuracy:
        stats = ("cosine", "precision_loss", "mse", "sqnr_db")
        read = {name: Stat(**values[name]) if values[name] is not None else None for name in stats}
        return cls(**{**values, **read})


@dataclass(frozen=True, slots=True)
class LayerTypeFigures:
    """Sizes and accuracy of the layers of one type (see layer_types)."""

    layer_type: str
    sizes: Sizes
    accuracy: Accuracy | None

    def to_dict(self) -> dict[str, Any]:
        accuracy = asdict(self.accuracy) if self.accuracy is not None else None
        return {"layer_type": self.layer_type, "sizes": self.sizes.to_dict(), "accuracy": accuracy}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerTypeFigures:
        return cls(values["layer_type"], Sizes.from_dict(values["sizes"]), _accuracy(values["accuracy"]))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Number of quantized layers with a cosine in [low, high), in the first bucket 1 included. share: part of all."""

    label: str
    low: float
    high: float
    layers: int
    share: float


@dataclass(frozen=True, slots=True)
class QuantTypeCount:
    """Number of layers stored as a quant_type (`fp16` and `none` are kept layers)."""

    quant_type: str
    layers: int
    params: int


@dataclass(frozen=True, slots=True)
class WorstLayer:
    """One of the quantized layers with the lowest cosine."""

    layer_name: str
    layer_type: str
    shape: tuple[int, ...]
    quant_type: str
    cosine: float
    mse: float | None
    sqnr_db: float | None
    max_error: float | None


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A layer that is not quantized, and why."""

    layer_name: str
    shape: tuple[int, ...]
    dtype: str
    quant_type: str
    params: int
    reason: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Duration and memory. phases: seconds in read, quantize, write, summed over workers and over all runs that made
    the dataset.

    wall_seconds, params_per_second, source_nbytes_per_second: those of the last run alone, without the shards that it
    found finished (None where it found all). peak_memory_nbytes: resident set of the largest worker process.
    """

    phases: dict[str, float]
    wall_seconds: float
    params_per_second: float | None
    source_nbytes_per_second: float | None
    peak_memory_nbytes: int


@dataclass(frozen=True, slots=True)
class ReportFigures:
    """All figures of a run; `report/report.json` is its `to_dict()`.

    source: {uri, format}. config: as the plan resolved it. part_compression: `zstd` or `none`. work: None in reports of
    version 1, which lack it. timeline: None in reports of releases that did not write it. notes: those of the plan, and
    those about values (reduce.notes).
    """

    source: dict[str, Any]
    config: dict[str, Any]
    fingerprint: str
    part_compression: str
    run: RunFacts
    work: WorkFigures | None
    totals: Totals
    layer_types: tuple[LayerTypeFigures, ...]
    quant_types: tuple[QuantTypeCount, ...]
    accuracy: Accuracy | None
    distribution: tuple[Bucket, ...]
    worst_layers: tuple[WorstLayer, ...]
    kept_layers: tuple[KeptLayer, ...]
    timing: Timing
    timeline: Timeline | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with derived ratios, which `json.dumps(allow_nan=False)` accepts."""
        return {
            "report_version": REPORT_VERSION,
            "source": self.source,
            "config": self.config,
            "fingerprint": self.fingerprint,
            "part_compression": self.part_compression,
            "run": self.run.to_dict(),
            "work": self.work.to_dict() if self.work is not None else None,
            "totals": self.totals.to_dict(),
            "layer_types": [figures.to_dict() for figures in self.layer_types],
            "quant_types": [asdict(count) for count in self.quant_types],
            "accuracy": asdict(self.accuracy) if self.accuracy is not None else None,
            "distribution": [asdict(bucket) for bucket in self.distribution],
            "worst_layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.worst_layers],
            "kept_layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.kept_layers],
            "timing": asdict(self.timing),
            "timeline": self.timeline.to_dict() if self.timeline is not None else None,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReportFigures:
        """The inverse of `to_dict`, for reports of this release and of older ones.

        Raises InvalidCheckpoint where it is not a report, or a newer one.
        """
        try:
            report = cls._from_checked(upgraded(values))
            check_types(report, "")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidCheckpoint(
                f"not a report of version {values['report_version']} ({type(error).__name__}: {str(error)[:200]}); "
                "write it again with `quantize --overwrite`"
            ) from error
        return report

    @classmethod
    def _from_checked(cls, values: Mapping[str, Any]) -> ReportFigures:
        return cls(
            source=dict(values["source"]),
            config=dict(values["config"]),
            fingerprint=values["fingerprint"],
            part_compression=values["part_compression"],
            run=RunFacts.from_dict(values["run"]),
            work=WorkFigures.from_dict(values["work"]) if values["work"] is not None else None,
            totals=Totals.from_dict(values["totals"]),
            layer_types=tuple(LayerTypeFigures.from_dict(figures) for figures in values["layer_types"]),
            quant_types=tuple(QuantTypeCount(**count) for count in values["quant_types"]),
            accuracy=_accuracy(values["accuracy"]),
            distribution=tuple(Bucket(**bucket) for bucket in values["distribution"]),
            worst_layers=tuple(
                WorstLayer(**{**layer, "shape": tuple(layer["shape"])}) for layer in values["worst_layers"]
            ),
            kept_layers=tuple(
                KeptLayer(**{**layer, "shape": tuple(layer["shape"])}) for layer in values["kept_layers"]
            ),
            timing=Timing(**values["timing"]),
            timeline=_timeline(values.get("timeline")),
            notes=tuple(values["notes"]),
        )


def _timeline(values: Mapping[str, Any] | None) -> Timeline | None:
    return Timeline.from_dict(values) if values is not None else None


def _accuracy(values: Mapping[str, Any] | None) -> Accuracy | None:
    return Accuracy.from_dict(values) if values is not None else None
