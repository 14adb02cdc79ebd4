"""One part of the model after the other: sums by an engine, statistics, and what the next part gets."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.calibration.arrays import ArrayDraft, ArrayFile, write_arrays
from arrowquant_dist.calibration.layout import quantized_path, statistics_path, sums_path
from arrowquant_dist.calibration.place import CalibrationPlace, PartDone
from arrowquant_dist.calibration.quantizing import PathQuantizer
from arrowquant_dist.calibration.reduce import PartStatistics, SlicedSums, statistics_of
from arrowquant_dist.calibration.steps import OnCalibrationStep, counted_tokens
from arrowquant_dist.calibration.worker import (
    ALL_STAGES,
    OUTPUTS,
    CalibrationContext,
    SliceJob,
    SliceWorker,
    order_of,
)
from arrowquant_dist.config import RunConfig
from arrowquant_dist.engine import choose_engine

if TYPE_CHECKING:
    from arrowquant_dist.models.paths import Paths

_UNUSED = 999  # in the place of a stage's number: layers of which nothing is seen


@dataclass(slots=True)
class Parts:
    """tokens: of each slice. quantizer: None where there is one path. taken: layers that earlier parts have."""

    paths: Paths
    place: CalibrationPlace
    context: CalibrationContext
    run: RunConfig
    tokens: Sequence[int]
    quantizer: PathQuantizer | None
    progress: OnCalibrationStep | None
    taken: set[str] = field(default_factory=set)
    _quantized: list[str] = field(default_factory=list)

    def calibrate(self, part: int) -> PartDone:
        """PartStatistics of the part's layers are in OUT when it returns, and what goes into the next part."""
        found = self._one_path(part) if self.quantizer is None else self._two_paths(part, self.quantizer)
        done = PartDone(tuple(found.layers), tuple(found.rows_first))
        self.place.add(part, done)
        self.note(part, done)
        self._clean(part)
        return done

    def note(self, part: int, done: PartDone) -> None:
        """That the part is done, now or by an earlier run."""
        self.taken |= {layer.name for layer in done.layers} | {*done.rows_first}
        is_first = part == 0
        if is_first and self.quantizer is not None:  # tied embeddings come again in the last part
            store = self.place.store
            self._quantized = [info.path for info in store.list(f"run/quantized/{part:05d}")]

    def _one_path(self, part: int) -> PartStatistics:
        self._sum(part, ALL_STAGES, ())
        order = order_of(self.paths, self.place.store, part)
        return self._write(part, 0, statistics_of(self.paths, order, self._sums(part, ALL_STAGES)))

    def _two_paths(self, part: int, quantizer: PathQuantizer) -> PartStatistics:
        self.paths.enter(part)
        order, found = order_of(self.paths, self.place.store, part), PartStatistics()
        named = {owner.layer for site in order.leader for owner in self.paths.owners(site)}
        quantized = [*self._quantized] if part else []
        rest = [name for name in self.paths.layers_of(part) if name not in named]
        quantized += self._quantize(part, _UNUSED, rest, quantizer, None)
        for stage in range(len(order.stages)):
            self._sum(part, stage, quantized)
            made = statistics_of(self.paths, order, self._sums(part, stage))
            made = self._write(part, stage, made)
            found.layers += made.layers
            found.rows_first += made.rows_first
            layers = [layer.name for layer in made.layers] + made.rows_first
            statistics = statistics_path(part, stage) if made.drafts else None
            quantized += self._quantize(part, stage, layers, quantizer, statistics)
        if part + 1 < self.paths.parts:
            self._sum(part, OUTPUTS, quantized)
        return found

    def _sum(self, part: int, stage: int, quantized: Sequence[str]) -> None:
        jobs = [
            SliceJob(index, part, stage, tuple(quantized), tokens) for index, tokens in enumerate(self.tokens)
        ]
        worker = SliceWorker(self.context, None)
        missing = [job for job in jobs if worker.committed(job) is None]
        if missing:
            name = f"part {part + 1} of {self.paths.parts}"
            name += f", stage {stage + 1}" if stage >= 0 else ", to the next" if stage == OUTPUTS else ""
            earlier = sum(self.tokens) - sum(job.tokens for job in missing)
            told = counted_tokens(name, sum(self.tokens), earlier, self.progress)
            choose_engine(self.run, self.context.memory_nbytes).run(self.context, missing, told)

    def _sums(self, part: int, stage: int) -> SlicedSums:
        paths = [sums_path(part, stage, index) for index in range(len(self.tokens))]
        return SlicedSums(self.place.store, paths)

    def _write(self, part: int, stage: int, found: PartStatistics) -> PartStatistics:
        """Of layers that no earlier part has."""
        layers = [layer for layer in found.layers if layer.name not in self.taken]
        own = {f"{layer.name}.{name}" for layer in layers for name in layer.parts}
        drafts = [draft for draft in found.drafts if draft.name in own]
        if drafts:
            write_arrays(self.place.store, statistics_path(part, stage), drafts)
        return PartStatistics(drafts, layers, [name for name in found.rows_first if name not in self.taken])

    def _quantize(
        self, part: int, stage: int, layers: Sequence[str], quantizer: PathQuantizer, statistics: str | None
    ) -> list[str]:
        """The path of the quantized values of these layers; [] where none is to be quantized."""
        wanted = [name for name in layers if name in quantizer.specs and name not in self.taken]
        path, store = quantized_path(part, stage), self.place.store
        if not wanted:
            return []
        if not store.exists(path):
            file = ArrayFile(store, statistics) if statistics is not None else None

            def one(name: str) -> np.ndarray:
                return quantizer.quantized(self.paths, name, file)

            with ThreadPoolExecutor(self.run.workers or 2) as pool:
                values = [*pool.map(one, wanted)]
            write_arrays(store, path, [ArrayDraft.of(n, v) for n, v in zip(wanted, values, strict=True)])
        return [path]

    def _clean(self, part: int) -> None:
        for folder in ("states", "sums", *(["quantized"] if part else [])):
            self.place.remove(f"run/{folder}/{part:05d}")
