"""`quantize` as an object, for callers that quantize several checkpoints in the same way."""

from __future__ import annotations

from collections.abc import Mapping

from arrowquant_dist.config import QuantizationConfig, RunConfig, check_config, check_run
from arrowquant_dist.displays import Displayed
from arrowquant_dist.driver.tracked import quantize_tracked
from arrowquant_dist.engine.progress import OnProgress
from arrowquant_dist.location import Location
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.runs import shown_progress
from arrowquant_dist.report.finished import Report
from arrowquant_dist.report.layer_rows import load_layers


class ArrowQuantizer(Displayed):
    """Quantizes checkpoints: `ArrowQuantizer(config).quantize(source, target)` returns the Report.

    config: what to do with which layers, a QuantizationConfig.
    run: how to do it (engine, workers, sizes, storage options); default: RunConfig().

    Raises InvalidConfig for other types.
    """

    def __init__(self, config: QuantizationConfig, run: RunConfig | None = None) -> None:
        check_config(config)
        self.config = config
        self.run = RunConfig() if run is None else run
        check_run(self.run)

    def _summary(self) -> Mapping[str, object]:
        return {"config": self.config, "run": self.run}

    def quantize(
        self, source: Location, target: Location, *, progress: OnProgress | bool | None = True
    ) -> Report:
        """Quantizes the checkpoint at `source` into a dataset at `target`, and returns its Report.

        The same call again resumes an interrupted run; if the dataset is finished, it only returns the report.

        source: a folder, a file, a URL that fsspec understands, or `minilm`.
        target: an empty place, a folder or a URL.
        progress: True shows progress in a terminal or a notebook, and only there; False shows none; a function is
            called with a driver.Progress (bytes and layers done and in total, workers), from any thread, one call at a
            time.

        Raises an ArrowQuantError: for bad input (InvalidConfig, InvalidCheckpoint, NotFound, TargetConflict …) before
        the first weight is read; otherwise the error that stopped the run, and finished shards are then kept at the
        target.
        """
        with told_to(progress, shown_progress, "quantize") as told:
            outcome = quantize_tracked(source, target, self.config, self.run, told)
        layers = outcome.layers
        if layers is None:
            layers = load_layers(outcome.target, self.run.target_storage)
        return Report.of(outcome.report, layers)
