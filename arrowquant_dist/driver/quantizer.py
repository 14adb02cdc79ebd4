"""`quantize` as an object, for those who quantize several checkpoints in one way."""

from __future__ import annotations

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.driver.progress import OnProgress
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.reduce import Report


class ArrowQuantizer:
    """ArrowQuantizer(config).quantize(source, target) returns the Report.

    run: engine, workers, sizes, storage options; default RunConfig().
    """

    def __init__(self, config: QuantizationConfig, run: RunConfig | None = None) -> None:
        self.config = config
        self.run = run or RunConfig()

    def quantize(self, source: str, target: str, on_progress: OnProgress | None = None) -> Report:
        """See driver.quantize."""
        return quantize(source, target, self.config, self.run, on_progress).report
