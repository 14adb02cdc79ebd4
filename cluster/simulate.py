"""Simulates how long a run takes with a number of workers, and what limits it, from the program's own plan of a model.

    python cluster/simulate.py --model 671B --workers 8,16,32,64,128,256

The rates are in simulation/rates.py, measured by measure.py. Assumptions about machines and storage can be changed
here: --latency 0.05 --preemptions 1 …. cluster/sizing.md has the results and what follows from them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace

from simulation.events import Result, Simulation
from simulation.rates import MEASURED, Cluster
from simulation.shapes import MODELS
from simulation.work import Work, work_of

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.errors import ArrowQuantError


def simulate(work: Work, cluster: Cluster, workers: Sequence[int], mparams: float | None) -> list[Result]:
    rates = replace(MEASURED, params_per_second=mparams * 1e6) if mparams else MEASURED
    return [Simulation(work, rates, cluster, count).run() for count in workers]


def table(work: Work, results: Sequence[Result], cluster: Cluster) -> str:
    """A Markdown table with a row for each number of workers. The rate, and all columns to its right, leave out the
    time of start and end."""
    lines = [
        "| workers | nodes | time | start and end | read, GB/s | workers busy | largest other share | driver busy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        nodes = -(-result.workers // cluster.workers_per_node)
        around = _time(result.start_seconds + result.end_seconds)
        rate = work.read.sum() / result.running_seconds / 1e9
        rest = f"{result.bound}, {result.shares[result.bound]:.0%}"
        lines.append(
            f"| {result.workers} | {nodes} | {_time(result.seconds)} | {around} | {rate:.1f} | {result.efficiency:.0%} "
            f"| {rest} | {result.driver_busy:.1%} |"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[*MODELS], default="671B")
    parser.add_argument(
        "--workers", default="8,16,32,64,128,256", help="numbers of workers, separated by commas"
    )
    parser.add_argument("--quant", default="int8", help="type of the codes; give its rate with --mparams")
    parser.add_argument(
        "--mparams", type=float, help="rate of one worker in million weights per second, without S3"
    )
    for name in ("shard_bytes", "block_bytes"):
        parser.add_argument(f"--{name.replace('_', '-')}", default=getattr(RunConfig(), name))
    for assumed in fields(Cluster):
        parser.add_argument(
            f"--{assumed.name.replace('_', '-')}", type=type(assumed.default), default=assumed.default
        )
    parser.add_argument("--json", action="store_true")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _arguments().parse_args(arguments)
    cluster = Cluster(**{assumed.name: getattr(options, assumed.name) for assumed in fields(Cluster)})
    try:
        workers = [int(count) for count in options.workers.split(",")]
        run = RunConfig(shard_bytes=options.shard_bytes, block_bytes=options.block_bytes)
        start = time.perf_counter()
        work = work_of(MODELS[options.model](), QuantizationConfig(options.quant), run)
        planned = time.perf_counter() - start
        results = simulate(work, cluster, workers, options.mparams)
    except (ArrowQuantError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(
            json.dumps({"shards": work.shards, "results": [asdict(result) for result in results]}, indent=2)
        )
        return 0
    print(
        f"{options.model}: {work.params.sum() / 1e9:.0f} B weights, {work.read.sum() / 1e9:.0f} GB to read, "
        f"{work.written.sum() / 1e9:.0f} GB to write, {work.layers:,} layers, {work.shards:,} shards "
        f"(made and planned in {planned:.1f} s)\n"
    )
    print(table(work, results, cluster))
    return 0


if __name__ == "__main__":
    sys.exit(main())
