"""Goes through the parts of the model: has an engine make the sums, writes statistics, and prepares the next part."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.calibration.ahead import SeenAhead, look_ahead
from arrowquant_dist.calibration.arrays import ArrayDraft, ArrayFile, write_arrays
from arrowquant_dist.calibration.layout import quantized_path, statistics_path
from arrowquant_dist.calibration.memory import SharedMemory, Shares
from arrowquant_dist.calibration.place import CalibrationPlace, PartDone
from arrowquant_dist.calibration.quantizing import PathQuantizer
from arrowquant_dist.calibration.reduce import PartStatistics, SlicedSums, statistics_of
from arrowquant_dist.calibration.sensitivities import with_sensitivities
from arrowquant_dist.calibration.steps import Steps
from arrowquant_dist.calibration.worker import (
    AHEAD,
    ALL_STAGES,
    OUTPUTS,
    CalibrationContext,
    SliceJob,
    SliceWorker,
    order_of,
)
from arrowquant_dist.methods import HESSIAN
from arrowquant_dist.storage.base import is_temporary

if TYPE_CHECKING:
    from arrowquant_dist.models.paths import Paths
    from arrowquant_dist.models.sites import Order
    from arrowquant_dist.models.units import Unit

_UNUSED = 999  # stands for a stage's number, for layers that get no input
JobsOf = Generator[Sequence[SliceJob], None, PartStatistics]


@dataclass(slots=True)
class Parts:
    """Calibrates one part after another.

    memory: memory of this process, shared by its workers. tokens: number of tokens in each slice. quantizer: None where
    there is one path. sensitivities: those of embeddings; None where nothing is quantized by them. done: the finished
    parts, in order. taken: names of the layers in them. seen_ahead: statistics that are known before the first part."""

    paths: Paths
    place: CalibrationPlace
    context: CalibrationContext
    memory: SharedMemory
    tokens: Sequence[int]
    quantizer: PathQuantizer | None
    sensitivities: ArrayFile | None
    told: Steps
    done: list[PartDone] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    seen_ahead: SeenAhead = field(default_factory=SeenAhead)
    _quantized: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def jobs(self) -> Iterator[Sequence[SliceJob]]:
        """Jobs for an engine, step by step; those of a step must be done before the next step is asked for. At the end
        all parts are in `done`, and their statistics are in OUT."""
        for done in self.place.done():
            self._note(done)
        if self.quantizer is not None:
            self.seen_ahead = yield from look_ahead(self, self.quantizer, self._enter)
        for part in range(len(self.done), self.paths.parts):
            self._enter(part)
            quantizer = self.quantizer
            found = yield from self._one_path(part) if quantizer is None else self._two_paths(part, quantizer)
            done = PartDone(tuple(found.layers), tuple(found.unfit), tuple(found.strange))
            self.place.add(part, done)
            self._note(done)
            self._clean(part)

    def _note(self, done: PartDone) -> None:
        """Records that the next part is done, by this run or an earlier one."""
        self.taken |= {layer.name for layer in done.layers} | {*done.unfit}
        if not self.done and self.quantizer is not None:  # tied embeddings are used again in the last part
            there = [info.path for info in self.place.store.list(f"run/quantized/{0:05d}")]
            self._quantized = [
                path for path in there if not is_temporary(path)
            ]  # temporary ones are another process's, or a killed one's
        self.done.append(done)

    def _enter(self, part: int) -> None:
        nbytes = self.paths.weights_nbytes(part)
        self.memory.at_once(nbytes, self.paths.reading_nbytes(part), f"reading part {part + 1}'s weights")
        self.paths.enter(part)

    def _one_path(self, part: int) -> JobsOf:
        order = order_of(self.paths, self.place.store, part, ALL_STAGES)
        sums = yield from self._summed(part, order, ALL_STAGES, ())
        found = self._write(part, 0, statistics_of(self.paths, order, sums))
        return replace(found, strange=self.paths.strange(order))

    def _two_paths(self, part: int, quantizer: PathQuantizer) -> JobsOf:
        order = order_of(self.paths, self.place.store, part, OUTPUTS)
        found = PartStatistics(strange=self.paths.strange(order))
        named = {owner.layer for site in order.leader for owner in self.paths.owners(site)}
        quantized = [*self._quantized] if part else []
        rest = [name for name in self.paths.layers_of(part) if name not in named]
        quantized += self._quantize(part, _UNUSED, rest, quantizer, None)
        for stage in range(len(order.stages)):
            sums = yield from self._summed(part, order, stage, quantized)
            seen = statistics_of(self.paths, order, sums)
            made = self._write(part, stage, with_sensitivities(seen, self.sensitivities, quantizer.specs))
            found.layers += made.layers
            found.unfit += made.unfit
            layers = [layer.name for layer in made.layers] + made.unfit
            statistics = statistics_path(part, stage) if made.drafts else None
            quantized += self._quantize(part, stage, layers, quantizer, statistics)
        if part + 1 < self.paths.parts:
            shares = Shares([()], self.shares(part, order, OUTPUTS).at_once)
            yield from self.passes(part, OUTPUTS, quantized, shares)
        return found

    def _summed(
        self, part: int, order: Order, stage: int, quantized: Sequence[str]
    ) -> Generator[Sequence[SliceJob], None, SlicedSums]:
        jobs = yield from self.passes(part, stage, quantized, self.shares(part, order, stage))
        return SlicedSums(self.place.store, [job.written for job in jobs])

    def shares(self, part: int, order: Order, stage: int) -> Shares:
        """What each pass over the texts sums up, and how many slices are worked on at once."""
        paths = self.paths
        nbytes = paths.weights_nbytes(part), paths.batch_nbytes(order)
        units = self._units(part, order, stage)
        return self.memory.shares(*nbytes, units, f"part {part + 1} of {paths.parts}")

    def _units(self, part: int, order: Order, stage: int) -> list[Unit]:
        if stage == OUTPUTS:
            return []
        if stage == AHEAD:
            return self.paths.head_units(part, order)
        return self.paths.units(part, order, None if stage == ALL_STAGES else stage)

    def passes(
        self, part: int, stage: int, quantized: Sequence[str], shares: Shares
    ) -> Generator[Sequence[SliceJob], None, list[SliceJob]]:
        """One pass over the slices after another; yields the jobs that are not yet done, and returns all jobs."""
        worker, every = SliceWorker(self.context, None), []
        is_last = part + 1 == self.paths.parts
        for number, units in enumerate(shares.passes):
            makes = not is_last and (stage in (OUTPUTS, AHEAD) or (stage == ALL_STAGES and number == 0))
            jobs = [
                SliceJob(next(self._numbers), index, part, stage, units, makes, tuple(quantized), tokens)
                for index, tokens in enumerate(self.tokens)
            ]
            every += jobs
            missing = [job for job in jobs if worker.committed(job) is None]
            if missing:
                name = f"part {part + 1} of {self.paths.parts}{_step_name(stage, number, len(shares.passes))}"
                total = sum(self.tokens)
                self.told.begin(name, total - sum(job.tokens for job in missing), total)
                size = shares.at_once if shares.at_once < self.memory.workers else len(missing)
                for start in range(0, len(missing), size):
                    yield missing[start : start + size]
        return every

    def _write(self, part: int, stage: int, found: PartStatistics) -> PartStatistics:
        """Writes the statistics of layers that no earlier part has. With one path, also the Hessian that a tied
        embedding has as the output head."""
        layers = [layer for layer in found.layers if layer.name not in self.taken]
        if self.quantizer is None and part:
            tied = self.paths.tied_heads
            layers += [layer for layer in found.layers if layer.name in tied and HESSIAN in layer.parts]
        own = {f"{layer.name}.{name}" for layer in layers for name in layer.parts}
        drafts = [draft for draft in found.drafts if draft.name in own]
        if drafts:
            write_arrays(self.place.store, statistics_path(part, stage), drafts)
        layers = [self.seen_ahead.noted(layer) for layer in layers]
        return PartStatistics(drafts, layers, [name for name in found.unfit if name not in self.taken])

    def _quantize(
        self, part: int, stage: int, layers: Sequence[str], quantizer: PathQuantizer, statistics: str | None
    ) -> list[str]:
        """Quantizes these layers and returns the path of their values in a list; [] where none is to be quantized."""
        wanted = [name for name in layers if name in quantizer.specs and name not in self.taken]
        path, store = quantized_path(part, stage), self.place.store
        if not wanted:
            return []
        if not store.exists(path):
            file = ArrayFile(store, statistics) if statistics is not None else None
            files = {name: self.seen_ahead.of(name, file) for name in wanted}
            each = {name: quantizer.work_nbytes(self.paths, name, files[name]) for name in wanted}
            largest = max(wanted, key=each.__getitem__)
            weights = self.paths.weights_nbytes(part)
            at_once = self.memory.at_once(weights, each[largest], f"quantizing {largest!r}")
            made = _in_order(self.paths, quantizer, files, at_once)
            sizes = [(self.paths.nbytes_of(name),) for name in wanted]
            drafts = [
                ArrayDraft(name, size, "uint8", lambda: [next(made)])
                for name, size in zip(wanted, sizes, strict=True)
            ]
            write_arrays(store, path, drafts)
        return [path]

    def _clean(self, part: int) -> None:
        for folder in ("states", "sums", *(["quantized"] if part else [])):
            self.place.remove(f"run/{folder}/{part:05d}")


def _in_order(
    paths: Paths, quantizer: PathQuantizer, files: Mapping[str, ArrayFile | None], at_once: int
) -> Iterator[np.ndarray]:
    """The quantized values of layers in order, `at_once` of them made at a time. files: {layer: file with its
    statistics}."""

    def one(name: str) -> np.ndarray:
        return quantizer.quantized(paths, name, files[name])

    with ThreadPoolExecutor(at_once) as pool:
        layers = [*files]
        for start in range(0, len(layers), at_once):
            yield from pool.map(one, layers[start : start + at_once])


def _step_name(stage: int, number: int, passes: int) -> str:
    names = {OUTPUTS: ", to the next", AHEAD: ", ahead"}
    name = f", stage {stage + 1}" if stage >= 0 else names.get(stage, "")
    return name + (f", pass {number + 1} of {passes}" if passes > 1 else "")
