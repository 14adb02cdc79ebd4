"""`quantize` as an object, for those who quantize several checkpoints in one way."""

from __future__ import annotations

from arrowquant_dist.config import QuantizationConfig, RunConfig, check_config, check_run
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.engine.progress import OnProgress
from arrowquant_dist.location import Location
from arrowquant_dist.reduce import Report


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

    def quantize(self, source: Location, target: Location, on_progress: OnProgress | None = None) -> Report:
        """See driver.quantize."""
        return quantize(source, target, self.config, self.run, on_progress).report
