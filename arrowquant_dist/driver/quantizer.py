"""`quantize` as an object, for those who quantize several checkpoints in one way."""

from __future__ import annotations

from arrowquant_dist.config import QuantizationConfig, RunConfig, check_config, check_run
from arrowquant_dist.driver.tracked import quantize_tracked
from arrowquant_dist.engine.progress import OnProgress
from arrowquant_dist.location import Location
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.runs import shown_progress
from arrowquant_dist.report.finished import Report
from arrowquant_dist.report.layer_rows import load_layers


class ArrowQuantizer:
    """ArrowQuantizer(config).quantize(source, target) returns the Report.

    run: engine, workers, sizes, storage options; default RunConfig(). source, target: texts or path objects. Raises
    InvalidConfig for other types.
    """

    def __init__(self, config: QuantizationConfig, run: RunConfig | None = None) -> None:
        check_config(config)
        self.config = config
        self.run = RunConfig() if run is None else run
        check_run(self.run)

    def quantize(
        self, source: Location, target: Location, *, progress: OnProgress | bool | None = True
    ) -> Report:
        """Quantizes the checkpoint at `source` into the dataset at `target`, and returns its Report.

        The same call again resumes a run that was stopped; of a finished dataset it returns the report.

        source: a folder, a file, a URL that fsspec knows, or `minilm`. target: an empty place, a folder or URL.
        progress: True: drawn in a terminal or a notebook, and nowhere else; False: not at all; a function: called with
        driver.Progress (bytes and layers done and in all, workers) from any thread, one call at a time.

        Raises an ArrowQuantError: bad input (InvalidConfig, InvalidCheckpoint, NotFound, TargetConflict …) before the
        first weight is read, or what stopped the run; then finished shards are kept at the target.
        """
        with told_to(progress, shown_progress, "quantize") as told:
            outcome = quantize_tracked(source, target, self.config, self.run, told)
        layers = outcome.layers
        if layers is None:
            layers = load_layers(outcome.target, self.run.target_storage)
        return Report.of(outcome.report, layers)
