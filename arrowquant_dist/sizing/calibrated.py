"""`size` with statistics of layers' inputs: steps on gptq's target, the same for all layers.

If the statistics are of a calibration for the same size, its steps are used (sizing/recorded.py). Otherwise, or for the
last layers, the layers are looked at twice, one at a time: some of a layer's rows are corrected by its statistics and
rounded in a few steps around the likely one, and its size at any step between these is interpolated. The common step is
found from these curves alone, first roughly and then closely.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, QuantSpec, RunConfig
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.plan import Plan, RowBlock, SideInputs, SideTensors
from arrowquant_dist.sizing.candidates import HEAD_TOO, ON_TARGET
from arrowquant_dist.sizing.curves import Curve, measured_curve
from arrowquant_dist.sizing.embeddings import row_steps_of
from arrowquant_dist.sizing.framing import parts_nbytes
from arrowquant_dist.sizing.frontier import nbytes_of
from arrowquant_dist.sizing.measure import Measured, measure
from arrowquant_dist.sizing.recorded import RecordedTable, recorded_table
from arrowquant_dist.sizing.run import (
    ChosenTable,
    choose_size,
    is_free,
    layers_of,
    said_types,
    size_note,
    table_config,
)
from arrowquant_dist.sizing.sample import EMBEDDING_VALUES, LayerSample, read_samples
from arrowquant_dist.sizing.table import ways_in_short
from arrowquant_dist.sizing.target_rows import TargetRows
from arrowquant_dist.worker.side_inputs import SidePreparer

# Part of the limit by which a prediction from sampled rows and between steps may be wrong. MiniLM's parts at 8.5 MB
# took .05 % more than was predicted (.3 to .5 % less, where a ninth of the embedding's rows was looked at).
_MARGIN = 0.002
# (ratio of a step to the one before, number of steps on either side of the likely one). Bytes of Huffman codes are not
# a smooth function of the step, so interpolation is right to a thousandth only between close steps.
_LOOKS = ((1.25, 3), (1.03, 1))
_FINEST, _COARSEST = 0.02, 16.0  # beyond these, int8 cuts values off, or all codes are 0
_HALVINGS = 40
# The size of a small embedding may also jump by some hundredths between two steps. So layers are measured at the very
# step that was found, up to so many times, and each time it grows by so many times the excess.
_CONFIRMATIONS, _COARSER = 6, 3.0
# For the calibration's own table: the part of the room that may be left unused; the parts of all values that may get
# another step; the factor by which that step may differ at most.
_SPARE = 0.003
_LAST = (0.06, 0.25)
_FAR = 1.5
# The numbers in a part that hold the lengths of its values vary in length, too, by 8 bytes a layer or so: half a per
# cent of 30 KB. They are known only for ways that were chosen, so these are chosen anew up to so many times.
_FRAMINGS = 3
_ANEW = "steps are chosen again, since the hessians were not calibrated for this size; a calibration with it keeps more"


def choose_calibrated_size(
    plan: Plan,
    checkpoint: Checkpoint,
    config: QuantizationConfig,
    target: int,
    run: RunConfig,
    side_inputs: SideInputs,
) -> ChosenTable:
    """Chooses as choose_size does, with the statistics of gptq. Where no step fits, since almost nothing or more than
    codes need is asked for, it leaves the choice to choose_size.

    side_inputs: those of gptq. Raises InvalidConfig for a layer that they have no statistics of.
    """
    if plan.compression == "none":
        return choose_size(plan, checkpoint, config, target, run)
    layers = layers_of(plan)
    side_tensors, is_said = SideTensors(side_inputs), said_types(config)
    files = [file for side in side_inputs.values() for file in side.files]
    with (
        SourceReader(run.source_storage, checkpoint.files) as reader,
        SourceReader(run.source_storage, files) as side_reader,
        ThreadPoolExecutor(usable_cpus(), thread_name_prefix="sizing") as threads,
    ):
        row_steps = row_steps_of(plan, layers, ON_TARGET, checkpoint, run.source_storage)
        samples = [*read_samples(layers, reader, row_steps, [True] * len(layers), EMBEDDING_VALUES)]
        reader.confirm()
        free, fixed = [], {}
        for sample in samples:
            if is_free(sample.blocks[0], is_said):
                free.append(_Free.of(sample, side_tensors, side_reader))
            else:
                fixed[sample.layer.name] = measure(sample, sample.blocks[0].spec, ZstdFrames())
        coarsest = {one.sample.layer.name: one.without_statistics(_COARSEST) for one in free}
        beside = parts_nbytes(plan, fixed | coarsest) - nbytes_of(coarsest)
        limit = int(target * (1 - _MARGIN))
        room = limit - beside
        recorded = recorded_table(plan, config, target, side_inputs)
        for _ in range(1 + _FRAMINGS):
            found, is_as_recorded = _chosen(free, recorded, room, threads)
            nbytes = 0 if found is None else parts_nbytes(plan, fixed | found)
            if nbytes - limit <= _MARGIN / 2 * target:
                break
            room -= nbytes - limit
        side_reader.confirm()
    if found is None:
        return choose_size(plan, checkpoint, config, target, run)
    chosen = f"{size_note(nbytes, target)}: {ways_in_short(fixed | found)}"
    anew = [] if is_as_recorded else [_ANEW]
    note = "; ".join([chosen, *anew, *side_tensors.notes(config)])
    return ChosenTable(table_config(config, found), nbytes, note)


def _chosen(
    free: Sequence[_Free], recorded: RecordedTable | None, room: int, threads: ThreadPoolExecutor
) -> tuple[dict[str, Measured] | None, bool]:
    """Ways that take at most `room` bytes, None where there are none, and whether they are those of a calibration for
    this size."""
    found = None if recorded is None else _as_recorded(free, recorded, room, threads)
    return (_within(free, room, threads), False) if found is None else (found, True)


@dataclass(frozen=True, slots=True, eq=False)
class _Free:
    """A layer whose step is to be chosen. block: as gptq quantizes it, or as method `size` does without statistics."""

    sample: LayerSample
    block: RowBlock
    reader: SourceReader

    @classmethod
    def of(cls, sample: LayerSample, side_tensors: SideTensors, reader: SourceReader) -> _Free:
        block = sample.blocks[0]
        method = "gptq" if sample.row_steps in (None, HEAD_TOO) else "counted"
        spec, tensors = side_tensors.of(block.layer, _in_steps(sample, "int8", 1.0, method))
        return cls(sample, replace(block, spec=spec, side_tensors=tensors), reader)

    def relative_to(self, step: float) -> _Free:
        """The layer with `step` as its relative step."""
        return replace(self, sample=replace(self.sample, relative_step=step))

    def without_statistics(self, step: float) -> Measured:
        return measure(self.sample, _in_steps(self.sample, "int8", step, "size"), ZstdFrames())

    def at(self, spec: QuantSpec) -> Measured:
        """The layer under `spec`, as a calibration had it."""
        method = self.block.spec.method if spec.method in ("gptq", "counted") else spec.method
        if method == "gptq":
            return self._on_target().measure(spec, ZstdFrames())
        return measure(self._rows(), replace(spec, method=method), ZstdFrames())

    def curve(self, steps: Sequence[float]) -> Curve:
        frames, method = ZstdFrames(), self.block.spec.method

        def spec_at(quant_type: str, step: float) -> QuantSpec:
            return _in_steps(self.sample, quant_type, step, method)

        if method != "gptq":
            rows = self._rows()
            return measured_curve(steps, spec_at, lambda spec: measure(rows, spec, frames))
        on_target = self._on_target()
        return measured_curve(steps, spec_at, lambda spec: on_target.measure(spec, frames))

    def _rows(self) -> LayerSample:
        if self.block.spec.method == "counted":
            return replace(self.sample, side=self._side())
        return self.sample if self.sample.row_steps is not None else self.sample.joined()

    def _on_target(self) -> TargetRows:
        return TargetRows(self.sample, self._side())

    def _side(self) -> Any:
        return SidePreparer(self.reader).side_of(self.block)


def _in_steps(sample: LayerSample, quant_type: str, step: float, method: str) -> QuantSpec:
    return replace(sample.spec_at(quant_type, step), method=method)


def _as_recorded(
    free: Sequence[_Free], recorded: RecordedTable, room: int, threads: ThreadPoolExecutor
) -> dict[str, Measured] | None:
    """Every layer as the calibration had it, except the last ones to run, for whose errors nothing makes up: their step
    is changed so that `room` bytes are used. None where it would have to change too much."""
    found = threads.map(lambda one: one.at(recorded.specs[one.sample.layer.name]), free)
    table = dict(zip(_names(free), found, strict=True))
    if 0 <= room - nbytes_of(table) <= _SPARE * room:
        return table
    steps = {name: one.spec.step for name, one in table.items() if one.spec.method == "gptq"}
    by_name = dict(zip(_names(free), free, strict=True))
    last = [by_name[name] for name in reversed(recorded.order) if name in steps]
    for share in _LAST if last else ():
        tail = _with_share(last, share * sum(one.sample.params for one in free))
        tail = [one.relative_to(steps[one.sample.layer.name]) for one in tail]
        names = _names(tail)
        moved = _within(tail, room - nbytes_of(table) + sum(table[name].nbytes for name in names), threads)
        near = moved and all(1 / _FAR <= moved[name].spec.step / steps[name] <= _FAR for name in names)
        if moved and near:
            return table | moved
    return None


def _with_share(last: Sequence[_Free], params: float) -> list[_Free]:
    """The first of `last` that have `params` values together; all of them where there are not as many."""
    found: list[_Free] = []
    for one in last:
        found.append(one)
        if sum(each.sample.params for each in found) >= params:
            break
    return found


def _within(free: Sequence[_Free], room: int, threads: ThreadPoolExecutor) -> dict[str, Measured] | None:
    """Every layer at the finest step at which all take at most `room` bytes; None where that is beyond our steps."""
    params = sum(one.sample.params for one in free)
    step = 4.0 * 2.0 ** -max(8.0 * room / max(1, params), 0.0)
    for ratio, about in _LOOKS:
        found = _between_looks(free, step, (ratio, about), room, threads)
        if found is None:
            return None
        curves, step = found
    for _ in range(_CONFIRMATIONS):
        specs = [one.spec for one in _at(curves, step).values()]
        measured = dict(zip(_names(free), threads.map(_Free.at, free, specs), strict=True))
        excess = nbytes_of(measured) - room
        if excess <= 0:
            return measured
        step *= 1.0 + _COARSER * excess / room
    return None


def _between_looks(
    free: Sequence[_Free], middle: float, look: tuple[float, int], room: int, threads: ThreadPoolExecutor
) -> tuple[dict[str, Curve], float] | None:
    """Curves of all layers around the finest step at which they take at most `room` bytes, and that step. middle: a
    likely step."""
    ratio, about = look
    while _FINEST < middle < _COARSEST:
        steps = [middle * ratio**index for index in range(-about, about + 1)]
        curves = dict(zip(_names(free), threads.map(lambda one, s=steps: one.curve(s), free), strict=True))
        if nbytes_of(_at(curves, steps[-1])) > room:
            middle *= ratio ** (2 * about)
        elif nbytes_of(_at(curves, steps[0])) <= room:
            middle /= ratio ** (2 * about)
        else:
            return curves, _finest(curves, steps[0], steps[-1], room)
    return None


def _finest(curves: Mapping[str, Curve], low: float, high: float, room: int) -> float:
    """The finest step at which layers take at most `room` bytes, between `low`, at which they take more, and `high`."""
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if nbytes_of(_at(curves, middle)) > room:
            low = middle
        else:
            high = middle
    return high


def _names(free: Sequence[_Free]) -> list[str]:
    return [one.sample.layer.name for one in free]


def _at(curves: Mapping[str, Curve], step: float) -> dict[str, Measured]:
    return {name: curve.at(step) for name, curve in curves.items()}
