"""Configs that ask for a size or a quality: a concrete config is chosen before the plan is made, and checked after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig, recorded_config
from arrowquant_dist.config.quality import quality
from arrowquant_dist.config.size import size_limit
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.plan import Plan, SideInputs, plan_from_table
from arrowquant_dist.reduce import ReportFigures
from arrowquant_dist.target.target import Target


@dataclass(frozen=True, slots=True)
class Promise:
    """What a dataset has to satisfy before it is published; None: no limit.

    nbytes: maximum total size of the part files in bytes. cosine: minimum of the mean weight cosine over the layers.
    """

    nbytes: int | None = None
    cosine: float | None = None

    def refuse_broken(self, report: ReportFigures, uri: str) -> None:
        """Raises InvalidConfig if the dataset misses the promise; called before it is published. The choice is based
        on a sample of each layer's rows, and the other rows may compress or quantize worse."""
        found = report.totals.parts_nbytes
        if self.nbytes is not None and found > self.nbytes:
            again = self.nbytes * self.nbytes // found
            message = (
                f"the parts take {found} bytes, but size asks for at most {self.nbytes}: the choice was made from a "
                f"sample of rows, and the others take more; nothing was published, try --size {again} with --overwrite"
            )
            raise InvalidConfig(message, uri=uri)
        mean = report.accuracy.cosine.mean if report.accuracy is not None and report.accuracy.cosine else 1.0
        if self.cosine is not None and mean < self.cosine:
            closer = 1.0 - (1.0 - self.cosine) ** 2 / (1.0 - mean)
            message = (
                f"the mean weight cosine is {mean:.6f}, but min_quality asks for {self.cosine:g}: the choice was "
                "made from a sample of rows, and the others lose more; nothing was published, try --min-quality "
                f"{closer:.6f} with --overwrite"
            )
            raise InvalidConfig(message, uri=uri)


NO_PROMISE = Promise()


@dataclass(frozen=True, slots=True)
class Chosen:
    """The plan made from the chosen config, and the promise that the dataset has to keep."""

    plan: Plan
    promise: Promise


def choose_plan(
    config: QuantizationConfig,
    checkpoint: Checkpoint,
    run: RunConfig,
    plan_of: Callable[[QuantizationConfig], Plan],
    dataset: Target,
    side_inputs: SideInputs,
) -> Chosen:
    """Makes the plan; where `config` asks for a size or a quality, chooses how each layer is stored first.

    plan_of: makes the plan of a config that says how every layer is stored. side_inputs: the side inputs of `config`.
    dataset: the target of the run. A choice that was made there for the same config is reused; comparing the plans
    then tells whether everything else is the same.
    """
    if config.size is None and config.min_quality is None:
        return Chosen(plan_of(config), NO_PROMISE)
    if config.texts is not None:
        message = (
            "min_quality by texts is chosen by trying steps before a run: `arrowquant quantize` does it, and "
            "arrowquant_dist.choose_by_texts(source, config) returns the config to quantize with"
        )
        raise InvalidConfig(message)
    wanted = quality(config.min_quality) if config.min_quality is not None else None
    earlier = None if run.overwrite else earlier_choice(config, config.to_dict(), dataset)
    if earlier is not None:
        plan = plan_of(earlier[0])
        plan = replace(plan, notes=(*plan.notes, *earlier[1]))
        promise = _promise(config, plan, wanted.cosine if wanted is not None else None)
        return Chosen(plan, promise)
    from arrowquant_dist.sizing import (  # imported here, since no other run needs it
        choose_calibrated_size,
        choose_quality,
        choose_size,
    )

    first = plan_of(config)
    promise = _promise(config, first, wanted.cosine if wanted is not None else None)
    if wanted is not None and wanted.cosine is not None:
        choice = choose_quality(first, checkpoint, config, wanted.cosine, run)
    elif side_inputs:
        choice = choose_calibrated_size(first, checkpoint, config, promise.nbytes or 0, run, side_inputs)
    else:
        choice = choose_size(first, checkpoint, config, promise.nbytes or 0, run)
    plan = plan_of(choice.config)
    return Chosen(replace(plan, notes=(*plan.notes, choice.note)), promise)


def earlier_choice(
    config: QuantizationConfig, asked: Mapping[str, Any], dataset: Target
) -> tuple[QuantizationConfig, tuple[str, ...]] | None:
    """The config (table of layers) that was chosen for `asked` and recorded at the target, with the notes of that
    choice; None if there is none. asked: what `config` asks for."""
    planned = dataset.planned()
    if planned is None:
        manifest = dataset.manifest()
        values: Mapping[str, Any] = manifest.config if manifest is not None else {}
        notes: tuple[str, ...] = ()
    else:
        plan = plan_from_table(planned.table)
        values = plan.config
        notes = tuple(note for note in plan.notes if note.startswith(("size: ", "min_quality: ")))
    from arrowquant_dist.sizing.table import is_chosen_for

    if not is_chosen_for(values, asked):
        return None
    table = recorded_config(values)
    if config.hessians is not None:
        table = table.replace(hessians=config.hessians)  # the recorded location lacks the credentials
    return table, notes


def _promise(config: QuantizationConfig, plan: Plan, cosine: float | None) -> Promise:
    if config.size is None:
        return Promise(cosine=cosine)
    return Promise(size_limit(config.size).nbytes_of(sum(block.num_params for block in plan.blocks)))
