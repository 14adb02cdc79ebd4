"""The story: samples → what each way of storing a layer takes and loses → the ways that together have the size."""

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
_MARGIN = 0.002  # of the limit: what a prediction from sampled rows may be wrong by
_NEAR = 0.002  # of the limit, that may be left
_USED = 0.98  # of the limit: where less is used, no way of storing a layer takes more
_LOSS_MARGIN = 0.01  # of the loss that a quality leaves
_LOSS_NEAR = 0.02


class KnownArrays(Protocol):
    """By name."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> np.ndarray:
        """The caller's own."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownOfTexts:
    """Of layers, before there are statistics. relative_steps: by layer, where its step is not that of others
    (LayerSample.relative_step). counts: whole numbers, of each id from 0 on, None where they are not known.
    sensitivities: of rows of embeddings, by layer, [columns, columns] (methods/sensitive.py)."""

    relative_steps: Mapping[str, float]
    counts: np.ndarray | None
    sensitivities: KnownArrays | None = None

    def noted(self, samples: Sequence[LayerSample]) -> list[LayerSample]:
        """With what is known of each. The counts are of the vocabulary's rows, which are most."""
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
    """config: instead of the one that asks for a size or a quality. nbytes: predicted, of all part files. note: what
    was chosen, for people."""

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
    """plan: of the config without `size`. target: bytes that all part files may take. known: of the texts that
    it is calibrated with.

    Raises InvalidConfig where it cannot be had, and what reading raises.
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
    """The fewest bytes at which the mean over quantized layers of the cosine of decoded weights is at least `least`.

    plan: of the config without `min_quality`. Raises InvalidConfig where no size has it, with the most that can be had.
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
                f"said, the best is {math.floor(best * 1e6) / 1e6:g}"
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
    """A config for each step of method `size` that is asked for, one of STEPS: the best way of each layer at it,
    whatever that takes. The source is looked at once."""
    with _opened(plan, checkpoint, config, run, "min_quality") as (frontier, _):
        yield lambda step: table_config(config, frontier.afresh().at(step))


def table_config(config: QuantizationConfig, table: Ways) -> QuantizationConfig:
    return chosen_config(config, {name: one.spec for name, one in table.items()})


def size_note(nbytes: int, target: int) -> str:
    left = ", and every layer has the best way that there is" if nbytes < _USED * target else ""
    return f"size: the parts take about {nbytes} of the {target} bytes asked for{left}"


def within_room(frontier: Frontier, room: int, near: float) -> Ways | None:
    """The table of least error that takes at most `room` bytes; None where there is none.

    First the step for all layers. Where the bytes jump there, since layers go from one plain way to another, their ways
    are held and the others' step is moved; what is left then goes to single exchanges.
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
        message = f"{key}: counts compressed bytes, and run.compression is none; say zstd, or quant_type and no {key}"
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
    """Whether how the layer is stored is to be chosen. is_said: whether the config says it of a layer's name."""
    return block.spec.chooses_codes and not is_said(block.layer.name)


def said_types(config: QuantizationConfig) -> Callable[[str], bool]:
    """Whether the override that wins for a layer, the last that matches, has its quant_type."""
    overrides = [(matcher(override.layers), override) for override in reversed(config.overrides)]

    def is_said(name: str) -> bool:
        winner = next((override for match, override in overrides if match(name)), None)
        return winner is not None and winner.quant_type is not None

    return is_said


def _rows_of(sample: LayerSample) -> int:
    return sample.rows


def _loss(table: Mapping[str, Measured]) -> float:
    """1 - the mean weight cosine of quantized layers, as reports have it."""
    losses = [one.sums.precision_loss for one in table.values() if one.spec.is_quantized]
    return sum(losses) / len(losses) if losses else 0.0
