"""The story: samples → what each way of storing a layer takes and loses → the ways that together have the size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.config.patterns import matcher
from arrowquant_dist.config.size import SizeLimit
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.plan import Plan, RowBlock
from arrowquant_dist.sizing.candidates import finer_specs, importance, size_spec
from arrowquant_dist.sizing.framing import parts_nbytes
from arrowquant_dist.sizing.knapsack import Option, least_error
from arrowquant_dist.sizing.measure import Measured, measure
from arrowquant_dist.sizing.sample import LayerSample, read_samples
from arrowquant_dist.sizing.table import chosen_config

_MOST_CUT = 5e-5  # of a layer's codes, at the ends of the range of int4
_LEAST_STEP, _MOST_STEP = 1e-3, 16.0
_MARGIN = 0.002  # of the limit: what a prediction from sampled rows may be wrong by
_NEAR = 0.004  # of the limit, that may be left
_HALVINGS = 20

_ByLayer = dict[str, Measured]  # by layer


@dataclass(frozen=True, slots=True)
class SizeChoice:
    """config: instead of the one with a size. nbytes: predicted, of all part files. limit: what they may have."""

    config: QuantizationConfig
    nbytes: int
    limit: int

    @property
    def note(self) -> str:
        return f"size: the parts take about {self.nbytes} bytes, at most {self.limit} are asked for"


def choose_size(
    plan: Plan, checkpoint: Checkpoint, config: QuantizationConfig, limit: SizeLimit, run: RunConfig
) -> SizeChoice:
    """plan: of the config without `size`. Raises InvalidConfig where it cannot be had, and what reading raises."""
    if plan.compression == "none":
        message = (
            "size: counts compressed bytes, and run.compression is none; say zstd, or quant_type and no size"
        )
        raise InvalidConfig(message)
    target = limit.nbytes_of(sum(block.num_params for block in plan.blocks))
    layers = [tuple(blocks) for _, blocks in groupby(plan.blocks, key=lambda block: block.layer.name)]
    with SourceReader(run.source_storage, checkpoint.files) as reader:
        samples = list(read_samples(layers, reader))
        reader.confirm()
    is_said = _said(config)
    free = [sample for sample in samples if is_free(sample.blocks[0], is_said)]
    frames = ZstdFrames()
    fixed = {s.layer.name: measure(s, s.blocks[0].spec, frames) for s in samples if s not in free}
    with ThreadPoolExecutor(usable_cpus(), thread_name_prefix="sizing") as threads:
        steps = _Steps(free, threads)
        coarse = steps.at(_MOST_STEP)
        beside = parts_nbytes(plan, fixed | coarse) - _nbytes(coarse)
        room = int(target * (1 - _MARGIN)) - beside
        if _nbytes(coarse) > room:
            least = math.ceil((beside + _nbytes(coarse)) / (1 - _MARGIN))
            message = f"size: {target} bytes are too few for this source; choose at least {least}"
            raise InvalidConfig(message, uri=plan.source["uri"])
        finest = steps.at(_LEAST_STEP)
        found = steps.within(room) if _nbytes(finest) > room else _finer(steps, finest, room)
    nbytes = parts_nbytes(plan, fixed | found)
    return SizeChoice(chosen_config(config, {name: one.spec for name, one in found.items()}), nbytes, target)


class _Steps:
    """Layers at one step of method `size`, in multiples of each row's size."""

    def __init__(self, samples: Sequence[LayerSample], threads: ThreadPoolExecutor) -> None:
        self.samples, self._threads = samples, threads

    def at(self, step: float) -> _ByLayer:
        return self.each(lambda sample: best_container(sample, step))

    def each(self, how: Callable[[LayerSample], Measured]) -> _ByLayer:
        found = self._threads.map(how, self.samples)
        return {sample.layer.name: one for sample, one in zip(self.samples, found, strict=True)}

    def within(self, room: int) -> _ByLayer:
        """At the smallest step within `room` bytes, nearly. At _MOST_STEP they are, at _LEAST_STEP they are not."""
        low, high = math.log(_LEAST_STEP), math.log(_MOST_STEP)
        found: _ByLayer = {}
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            tried = self.at(math.exp(middle))
            if _nbytes(tried) > room:
                low = middle
                continue
            found, high = tried, middle
            if _nbytes(found) > room * (1 - _NEAR):
                break
        return found or self.at(_MOST_STEP)


def _finer(steps: _Steps, finest: _ByLayer, room: int) -> _ByLayer:
    """Where int8 by row leaves room: smaller groups, 16 bits, and layers as they are, where most error goes by byte."""
    ways: dict[str, list[Measured]] = {name: [one] for name, one in finest.items()}
    for index in range(len(finer_specs(steps.samples[0].blocks[0])) if steps.samples else 0):
        found = steps.each(lambda s, i=index: measure(s, finer_specs(s.blocks[0])[i], ZstdFrames()))  # type: ignore[misc]
        for name, one in found.items():
            ways[name].append(one)
    weights = {s.layer.name: importance(s.blocks[0]) * s.params for s in steps.samples}
    options = {
        name: [Option(weights[name] * one.error, one.nbytes) for one in each] for name, each in ways.items()
    }
    chosen = least_error(options, room)
    return finest if chosen is None else {name: ways[name][index] for name, index in chosen.items()}


def is_free(block: RowBlock, is_said: Callable[[str], bool]) -> bool:
    """Whether how the layer is stored is to be chosen. is_said: whether the config says it of a layer's name."""
    return block.spec.chooses_codes and not is_said(block.layer.name)


def _said(config: QuantizationConfig) -> Callable[[str], bool]:
    """Whether the override that wins for a layer, the last that matches, has its quant_type."""
    overrides = [(matcher(override.layers), override) for override in reversed(config.overrides)]

    def is_said(name: str) -> bool:
        winner = next((override for match, override in overrides if match(name)), None)
        return winner is not None and winner.quant_type is not None

    return is_said


def best_container(sample: LayerSample, step: float) -> Measured:
    """As int4, whose pairs of codes a byte come nearest to their entropy, while it cuts off nearly nothing; else int8.

    A layer whose codes are cut is worse than others of fewer bytes, whatever its squared error says.
    """
    frames, block = ZstdFrames(), sample.blocks[0]
    narrow = measure(sample, size_spec(block, "int4", step), frames)
    if narrow.outermost <= _MOST_CUT:
        return narrow
    return measure(sample, size_spec(block, "int8", step), frames)


def _nbytes(measured: Mapping[str, Measured]) -> int:
    return sum(one.nbytes for one in measured.values())
