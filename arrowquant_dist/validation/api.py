"""validate(), for those who call it."""

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
    """Quantizes a checkpoint by each config, and measures what comes out: sizes, errors, outputs, schemas, times and
    memory, against targets. Written to validation.json, .md and .html of `out`, beside the datasets in `out`/CONFIG.

    source: as of `quantize`. out: an empty place, or that of an earlier validation: finished datasets of the same plan
    are not made again, and the report then says whose times it has. configs: presets and files, or configs by name.
    targets: a YAML file (validation/targets.yaml has the classic ones, which count where that is None). texts, column:
    what outputs are measured with, as of `evaluate`; `builtin:held-back` where None. run: instead of what the configs'
    files say of it. progress: True: drawn in a terminal or a notebook, and nowhere else; False: not at all; a function:
    called with each TextsStep, from any thread, one call at a time.

    A source without a model that transformers or sentence-transformers can build is validated all the same; the reason
    is in the report. The first config's run says how the source is reached, and where the report is written.

    Raises InvalidConfig for targets, configs and texts, TargetConflict where something else is at `out`, and what
    `quantize` raises. Criteria that are not met raise nothing: see Validation.is_accepted.
    """
    if run is not None:
        check_run(run)
    named = named_configs(configs, run)
    asked = Asked.of(source, out, named, read_targets(targets), texts, column)
    with told_to(progress, shown_steps, "validate") as show:
        return validate_tracked(asked, show)
