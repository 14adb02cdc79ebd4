"""The public function validate()."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arrowquant_dist.config import QuantizationConfig, RunConfig, check_run
from arrowquant_dist.location import Location
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.steps import shown_steps
from arrowquant_dist.texts.steps import StepCallback
from arrowquant_dist.validation.figures import Validation
from arrowquant_dist.validation.named_configs import DEFAULT_CONFIGS, named_configs
from arrowquant_dist.validation.run import Asked
from arrowquant_dist.validation.targets import read_targets
from arrowquant_dist.validation.tracked import validate_tracked


def validate(
    source: Location,
    out: Location,
    configs: Sequence[Location] | Mapping[str, QuantizationConfig] = DEFAULT_CONFIGS,
    *,
    targets: Location | None = None,
    texts: Location | Sequence[str] | None = None,
    column: str | None = None,
    run: RunConfig | None = None,
    progress: StepCallback | bool | None = True,
) -> Validation:
    """Quantizes a checkpoint with each config, measures sizes, errors, outputs, schemas, times and memory of the
    resulting datasets, and compares them with targets. Writes validation.json, .md and .html to `out`, next to the
    datasets in `out`/CONFIG.

    source: checkpoint, as for `quantize`. out: an empty place, or the `out` of an earlier validation: finished datasets
    of the same plan are not made again, and the report then says which run its times are from. Its report is removed
    before the first dataset is made, so that a validation that fails leaves none. configs: presets and
    files, or configs by name. targets: YAML file of targets; None: the classic ones, in validation/targets.yaml. texts,
    column: texts that outputs are measured with, as for `evaluate`; None: `builtin:held-back`. run: run settings that
    replace those in the configs' files. progress: True: draw progress if this is a terminal or a notebook; False: show
    none; a function: called with each TextsStep, from any thread, one call at a time.

    If neither transformers nor sentence-transformers can build a model from the source, everything else is measured,
    and the report gives the reason. The run settings of the first config decide which storage options read the source
    and write the report.

    Raises InvalidConfig for invalid targets, configs or texts, TargetConflict if `out` holds something else, and what
    `quantize` raises. Criteria that are not met raise nothing: see Validation.is_accepted.
    """
    if run is not None:
        check_run(run)
    named = named_configs(configs, run)
    asked = Asked.of(source, out, named, read_targets(targets), texts, column)
    with told_to(progress, shown_steps, "validate") as show:
        return validate_tracked(asked, show)
