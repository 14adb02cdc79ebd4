"""One run in a process of its own: `python -m tests.benchmarks.run_one SOURCE TARGET RUN_CONFIG_AS_JSON [PRESET]` →
JSON with the seconds of the run without imports, `wall` (with imports) and `engine` (of the workers), and the peak
memory of the process, which with Ray is the driver.
"""

from __future__ import annotations

import json
import sys
import time

from arrowquant_dist.config import RunConfig, load_config
from arrowquant_dist.machine import status_nbytes


def main() -> None:
    source, target, settings, *preset = sys.argv[1:]
    started = time.perf_counter()
    from arrowquant_dist.driver import quantize

    config, _ = load_config(preset[0] if preset else "int8")
    run = RunConfig.from_dict(json.loads(settings))
    began = time.perf_counter()
    report = quantize(source, target, config, run).report
    ended = time.perf_counter()
    print(
        json.dumps(
            {
                "wall": ended - started,
                "seconds": ended - began,
                "engine": report.run.worker_seconds / max(1, report.run.workers),
                "peak_nbytes": status_nbytes("VmHWM"),
                "params": report.totals.params,
            }
        )
    )


if __name__ == "__main__":
    main()
