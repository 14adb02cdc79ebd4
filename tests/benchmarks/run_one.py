"""One run in a process of its own: `python -m tests.benchmarks.run_one SOURCE TARGET RUN_CONFIG_AS_JSON` → JSON."""

from __future__ import annotations

import json
import sys
import time

from arrowquant_dist.config import QuantizationConfig, RunConfig


def main() -> None:
    source, target, settings = sys.argv[1:]
    started = time.perf_counter()
    from arrowquant_dist.driver import quantize

    run = RunConfig.from_dict(json.loads(settings))
    report = quantize(source, target, QuantizationConfig("int8"), run).report
    print(
        json.dumps(
            {
                "wall": time.perf_counter() - started,
                "run": report.run.wall_seconds,
                "engine": report.run.worker_seconds / max(1, report.run.workers),
                "peak_nbytes": report.timing.peak_memory_nbytes,
                "params": report.totals.params,
                "phases": report.timing.phases,
            }
        )
    )


if __name__ == "__main__":
    main()
