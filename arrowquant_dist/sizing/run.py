"""The story: samples → size and error of each way to store a layer → the ways that together have the size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import numpy as np

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.config.patterns import matcher
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.methods.counted import CountedRows
from arrowquant_dist.plan import Plan, RowBlock
from arrowquant_dist.sizing.candidates import DATA_FREE, ON_TARGET
from arrowquant_dist.sizing.embeddings import row_steps_of
from arrowquant_dist.sizing.framing import parts_nbytes
from arrowquant_dist.sizing.frontier import LEAST_STEP, MOST_STEP, Frontier, Ways, nbytes_of
from arrowquant_dist.sizing.knapsack import Option, exchanged
from arrowquant_dist.sizing.measure import Measured, measure
from arrowquant_dist.sizing.sample import EMBEDDING_VALUES, LayerSample, read_samples
from arrowquant_dist.sizing.search import Tried, largest_within
from arrowquant_dist.sizing.table import chosen_config, ways_in_short

STEPS = (LEAST_STEP, MOST_STEP)
_MARGIN = 0.002  # part of the limit by which a prediction from sampled rows may be wrong
_NEAR = 0.002  # part of the limit that may be left unused
_USED = 0.98  # part of the limit: less is used only where no way to store a layer takes more
_LOSS_MARGIN = 0.01  # part of the loss that a quality allows
_LOSS_NEAR = 0.02


class KnownArrays(Protocol):
    """Arrays by name."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> np.ndarray:
        """The array, which belongs to the caller."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownOfTexts:
    """What texts tell of layers before there are statistics. relative_steps: {layer: LayerSample.relative_step}, where
    it is not 1. counts: whole numbers, of each id from 0 on; None where they are not known. sensitivities: of rows of
    embeddings, by layer, [columns, columns] (methods/sensitive.py)."""

    relative_steps: Mapping[str, float]
    counts: np.ndarray | None
    sensitivities: KnownArrays | None = None

    def noted(self, samples: Sequence[LayerSample]) -> list[LayerSample]:
        """The samples with what is known of each. The counts are of the rows of the largest embedding."""
        found = [replace(one, relative_step=self.relative_steps.get(one.layer.name, 1.0)) for one in samples]
        counts = self.counts
        most = max((one for one in found if one.row_steps == ON_TARGET), key=_rows_of, default=None)
        if counts is None or most is None or most.rows < counts.size:
            return found
        padded = np.zeros(most.rows, np.float32)
        padded[: counts.size] = counts
        side, name = CountedRows.of(padded), most.layer.name
        if self.sensitivities is not None and name in self.sensitivities:
            side = side.with_sensitivity(self.sensitivities.read(name), name)
        return [replace(one, side=side) if one is most else one for one in found]


@dataclass(frozen=True, slots=True)
class ChosenTable:
    """config: takes the place of the one that asks for a size or a quality. nbytes: predicted size of all part files.
    note: the choice, for people."""

    config: QuantizationConfig
    nbytes: int
    note: str


def choose_size(
    plan: Plan,
    checkpoint: Checkpoint,
    config: QuantizationConfig,
    target: int,
    run: RunConfig,
    known: KnownOfTexts | None = None,
) -> ChosenTable:
    """Chooses the ways to store layers that have the least error in the given bytes.

    plan: of the config without `size`. target: maximum size of all part files in bytes. known: what the texts of a
    calibration tell. Raises InvalidConfig where the size cannot be had, and what reading raises.
    """
    with _opened(plan, checkpoint, config, run, "size", known) as (frontier, fixed):
        coarsest = frontier.at(MOST_STEP)
        beside = parts_nbytes(plan, fixed | coarsest) - nbytes_of(coarsest)
        room = int(target * (1 - _MARGIN)) - beside
        table = within_room(frontier, room, _NEAR * target)
        if table is None:
            least = math.ceil((beside + nbytes_of(coarsest)) / (1 - _MARGIN))
            message = f"size: {target} bytes are too few for this source; choose at least {least}"
            raise InvalidConfig(message, uri=plan.source["uri"])
    nbytes = parts_nbytes(plan, fixed | table)
    note = f"{size_note(nbytes, target)}: {ways_in_short(fixed | table)}"
    return ChosenTable(table_config(config, table), nbytes, note)


def choose_quality(
    plan: Plan, checkpoint: Checkpoint, config: QuantizationConfig, least: float, run: RunConfig
) -> ChosenTable:
    """Chooses the fewest bytes at which decoded weights have a mean cosine of at least `least`, over quantized layers.

    plan: of the config without `min_quality`. Raises InvalidConfig, with the best cosine, where no size has it.
    """
    wanted = (1.0 - least) * (1 - _LOSS_MARGIN)
    with _opened(plan, checkpoint, config, run, "min_quality") as (frontier, fixed):

        def at(step: float) -> Tried[Ways]:
            table = frontier.at(step)
            return Tried(step, _loss(fixed | table) - wanted, table)

        found, beyond = largest_within(
            at, math.sqrt(24 * wanted), (LEAST_STEP, MOST_STEP), _LOSS_NEAR * wanted, falls=False
        )
        if found is None:
            best = 1.0 - (beyond.excess + wanted) if beyond is not None else 1.0
            message = (
                f"min_quality: no size has a mean weight cosine of {least:g}; with the layers whose types are "
                f"set, the best is {math.floor(best * 1e6) / 1e6:g}"
            )
            raise InvalidConfig(message, uri=plan.source["uri"])
    table = found.found
    nbytes, cosine = parts_nbytes(plan, fixed | table), 1.0 - _loss(fixed | table)
    note = (
        f"min_quality: the parts take about {nbytes} bytes for a mean weight cosine of about {cosine:.6f}, with at "
        f"least {least} asked for: {ways_in_short(fixed | table)}"
    )
    return ChosenTable(table_config(config, table), nbytes, note)


@contextmanager
def opened_steps(
    plan: Plan, checkpoint: Checkpoint, config: QuantizationConfig, run: RunConfig
) -> Iterator[Callable[[float], QuantizationConfig]]:
    """A function that gives the config for a step of method `size` within STEPS: the best way of each layer at that
    step, whatever it takes. The source is read once."""
    with _opened(plan, checkpoint, config, run, "min_quality") as (frontier, _):
        yield lambda step: table_config(config, frontier.afresh().at(step))


def table_config(config: QuantizationConfig, table: Ways) -> QuantizationConfig:
    return chosen_config(config, {name: one.spec for name, one in table.items()})


def size_note(nbytes: int, target: int) -> str:
    left = ", and no layer can be stored any better" if nbytes < _USED * target else ""
    return f"size: the parts take about {nbytes} of the {target} bytes asked for{left}"


def within_room(frontier: Frontier, room: int, near: float) -> Ways | None:
    """The table of least error that takes at most `room` bytes; None where there is none.

    First one step is found for all layers. Where the bytes jump at that step, since layers change from one plain way to
    another, these keep their ways and the step of the others is moved; what is left then goes to single exchanges.
    """

    def at(step: float) -> Tried[Ways]:
        table = frontier.at(step)
        return Tried(step, nbytes_of(table) - room, table)

    bits = 8.0 * room / max(1, sum(sample.params for sample in frontier.samples))
    first = 4.0 * 2.0 ** -min(max(bits, 0.1), 16.0)
    found, beyond = largest_within(at, first, (LEAST_STEP, MOST_STEP), near, falls=True)
    if found is None:
        return None
    if found.excess >= -near or beyond is None:
        return found.found

    def moved(step: float) -> Tried[Ways]:
        table = frontier.beside(found.found, step)
        return Tried(step, nbytes_of(table) - room, table)

    finer, _ = largest_within(moved, found.step, (LEAST_STEP, found.step), near, falls=True)
    tables = [finer.found if finer is not None else found.found, found.found, beyond.found]
    ways = frontier.ways(*tables)
    params = {sample.layer.name: sample.params for sample in frontier.samples}
    options = {
        name: [Option(params[name] * way.error, way.nbytes) for way in each] for name, each in ways.items()
    }
    chosen = exchanged(options, dict.fromkeys(options, 0), room)
    return {name: ways[name][index] for name, index in chosen.items()}


@contextmanager
def _opened(
    plan: Plan,
    checkpoint: Checkpoint,
    config: QuantizationConfig,
    run: RunConfig,
    key: str,
    known: KnownOfTexts | None = None,
) -> Iterator[tuple[Frontier, Ways]]:
    """The layers whose way is to be chosen, and the others as they are going to be stored."""
    if plan.compression == "none":
        message = f"{key}: counts compressed bytes, but run.compression is none; set zstd, or quant_type and no {key}"
        raise InvalidConfig(message)
    layers = layers_of(plan)
    row_steps = row_steps_of(
        plan, layers, DATA_FREE if known is None else ON_TARGET, checkpoint, run.source_storage
    )
    with SourceReader(run.source_storage, checkpoint.files) as reader:
        in_runs = [steps is not None for steps in row_steps]
        most = 0 if known is None else EMBEDDING_VALUES
        samples = list(read_samples(layers, reader, row_steps, in_runs, most))
        reader.confirm()
    is_said = said_types(config)
    samples = samples if known is None else known.noted(samples)
    free = {sample.layer.name: sample for sample in samples if is_free(sample.blocks[0], is_said)}
    frames = ZstdFrames()
    fixed = {s.layer.name: measure(s, s.blocks[0].spec, frames) for s in samples if s.layer.name not in free}
    with ThreadPoolExecutor(usable_cpus(), thread_name_prefix="sizing") as threads:
        yield Frontier([*free.values()], threads), fixed


def layers_of(plan: Plan) -> list[tuple[RowBlock, ...]]:
    """The row blocks of each layer, in the plan's order."""
    return [tuple(blocks) for _, blocks in groupby(plan.blocks, key=lambda block: block.layer.name)]


def is_free(block: RowBlock, is_said: Callable[[str], bool]) -> bool:
    """Whether the way to store the layer is to be chosen. is_said: whether the config gives it for a layer's name."""
    return block.spec.chooses_codes and not is_said(block.layer.name)


def said_types(config: QuantizationConfig) -> Callable[[str], bool]:
    """A function that says whether the override that wins for a layer, the last that matches, has a quant_type."""
    overrides = [(matcher(override.layers), override) for override in reversed(config.overrides)]

    def is_said(name: str) -> bool:
        winner = next((override for match, override in overrides if match(name)), None)
        return winner is not None and winner.quant_type is not None

    return is_said


def _rows_of(sample: LayerSample) -> int:
    return sample.rows


def _loss(table: Mapping[str, Measured]) -> float:
    """1 - the mean weight cosine of quantized layers, as in reports."""
    losses = [one.sums.precision_loss for one in table.values() if one.spec.is_quantized]
    return sum(losses) / len(losses) if losses else 0.0
