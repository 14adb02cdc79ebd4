"""The story: sample → specs at a step → bytes → the step at which they are what was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, QuantSpec, ResolvedLayer, RunConfig
from arrowquant_dist.config.patterns import matcher
from arrowquant_dist.config.size import SizeLimit
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.plan import Plan, RowBlock
from arrowquant_dist.reduce.layer_types import EMBEDDINGS, layer_type
from arrowquant_dist.sizing.framing import parts_nbytes
from arrowquant_dist.sizing.measure import Measured, measure
from arrowquant_dist.sizing.sample import LayerSample, read_samples

RATE = 0.1155  # squares of a step that a bit is worth: 2 ln 2 / 12, the slope of error by rate at fine steps
EMBEDDING_STEP = 2.4  # times that of other layers, of the row in the middle (by logarithm) of a vocabulary
ROW_EXPONENT = 0.15
_MIDDLE_RANK = 8000.0
_MOST_CUT = 5e-5
_LEAST_STEP, _MOST_STEP = 1e-3, 16.0


@dataclass(frozen=True, slots=True)
class SizeChoice:
    """chosen: by layer, for make_plan. nbytes: predicted, of all part files."""

    chosen: Mapping[str, ResolvedLayer]
    nbytes: int


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
    with ThreadPoolExecutor(usable_cpus(), thread_name_prefix="sizing") as threads:
        said = _said(config)
        free = [sample for sample in samples if is_free(sample.blocks[0], said)]
        fixed = [sample for sample in samples if not is_free(sample.blocks[0], said)]
        frames = ZstdFrames()
        known = {s.layer.name: measure(s, s.blocks[0].spec, frames) for s in fixed}

        def at(step: float) -> dict[str, Measured]:
            found = threads.map(lambda sample: best_container(sample, step), free)
            return {sample.layer.name: one for sample, one in zip(free, found, strict=True)}

        coarse = at(1.0)
        framing = parts_nbytes(plan, known | coarse) - _nbytes(known.values()) - _nbytes(coarse.values())
        room = target - framing - _nbytes(known.values())
        found = _bisect(at, room)
    predicted = framing + _nbytes(known.values()) + _nbytes(found.values())
    if predicted > target:
        message = f"size: {target} bytes are too few for this source; choose at least {predicted}"
        raise InvalidConfig(message, uri=plan.source["uri"])
    return SizeChoice({name: ResolvedLayer(one.spec, None) for name, one in found.items()}, predicted)


def _bisect(at: Callable[[float], dict[str, Measured]], room: int) -> dict[str, Measured]:
    """What `at` gives for the smallest step within `room` bytes, nearly; for the largest where nothing is."""
    low, high = math.log(_LEAST_STEP), math.log(_MOST_STEP)
    found = at(_MOST_STEP)
    for _ in range(14):
        middle = (low + high) / 2
        tried = at(math.exp(middle))
        if _nbytes(tried.values()) <= room:
            found, high = tried, middle
        else:
            low = middle
        if 0.998 * room < _nbytes(found.values()) <= room:
            break
    return found


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
    frames = ZstdFrames()
    narrow = measure(sample, size_spec(sample, "int4", step), frames)
    if narrow.outermost <= _MOST_CUT:
        return narrow
    return measure(sample, size_spec(sample, "int8", step), frames)


def size_spec(sample: LayerSample, quant_type: str, step: float) -> QuantSpec:
    base = sample.blocks[0].spec
    exponent = 0.0
    if layer_type(sample.layer.name) == EMBEDDINGS:
        exponent = ROW_EXPONENT
        step *= EMBEDDING_STEP / _MIDDLE_RANK**ROW_EXPONENT
    return replace(
        base,
        quant_type=quant_type,
        per_channel=True,
        group_size=0,
        symmetric=True,
        method="size",
        integer_zero_points=False,
        step=float(f"{step:.5g}"),
        row_exponent=exponent,
        rate=RATE,
    )


def _nbytes(measured: Iterable[Measured]) -> int:
    return sum(one.nbytes for one in measured)
