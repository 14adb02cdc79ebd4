"""Measures the program's own rates for simulation/rates.py, and checks the simulation against real runs.

    python cluster/measure.py rates     the values of MEASURED in simulation/rates.py (needs the extra `test`, for S3)
    python cluster/measure.py check     real runs with one and two workers, of another model than the rates are from

Takes some minutes and some GB of temporary files. On a machine that others use, run it several times and take the
medians.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkout import ROOT
from safetensors.numpy import save_file
from simulation.events import Simulation
from simulation.rates import MEASURED, Cluster
from simulation.work import work_of_plan

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig, Storage
from arrowquant_dist.driver import quantize
from arrowquant_dist.plan import make_plan
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from tests.benchmarks.big import Tensors as Shapes
from tests.benchmarks.big import llama, write_checkpoint

CALIBRATED = llama(2048, 5632, 10, 32_000)  # 0.65 B weights
CHECKED = llama(2560, 6912, 10, 40_000)  # 1.0 B weights, other shapes
LOCAL = Cluster(network=0.0, node_seconds=0.0, preemptions=0.0, jitter=0.0)
_MIB = 1 << 20
RUN = RunConfig(engine="ray", shard_bytes=64 * _MIB)
RUNS = 4
INT8 = QuantizationConfig("int8")
_SHARDS = 2000
_SMALL = 256 << 10  # bytes of a shard that is one small matrix


def measure_rates() -> dict[str, float]:
    """The rates, by their names in simulation.rates.Rates. They are measured in CPU seconds wherever that is enough,
    because the load of other processes does not change them."""
    with _checkpoint(CALIBRATED) as source:
        params = _run(source, RUN.replace(workers=1, engine="inline"))["params"]
        rate = params / min(_engine_cpu(source, RUN.replace(workers=1, engine="inline")) for _ in range(RUNS))
    with _tiny(1, 256) as source:
        actors = min(_run(source, RUN.replace(workers=1))["running"] for _ in range(RUNS))
    with _tiny(_SHARDS, 256) as source:
        small = RUN.replace(shard_bytes=_SMALL)
        pairs = [
            [_engine_cpu(source, small.replace(workers=workers)) / _SHARDS for workers in (1, 8)]
            for _ in range(RUNS)
        ]
        one, eight = (min(each) for each in zip(*pairs, strict=True))
        tiny = _run(source, small.replace(workers=1))
    planning, reducing = _driver_phases(20_000)
    read_cpu, write_cpu = _client_seconds()
    return {
        "params_per_second": rate,
        "shard_seconds": (tiny["running"] - actors - tiny["params"] / rate) / _SHARDS,
        "read_cpu": read_cpu,
        "write_cpu": write_cpu,
        "dispatch_seconds": min(one, eight),
        "dispatch_seconds_per_worker": max(0.0, (eight - one) / 7),
        "actor_seconds": actors,
        "planning_seconds": planning,
        "reducing_seconds": reducing,
    }


def check() -> str:
    """A table of the real and simulated seconds of an int4 run, in which quantizing takes a larger share of the time
    than in int8.

    The rate of a worker and the time of the start are measured in the same minutes, with another model. Of each, the
    best of RUNS counts: on a shared machine the others change by the minute, and this checks what the simulation makes
    of the rates, not the rates themselves.
    """
    import ray

    config = QuantizationConfig("int4", per_channel=False, group_size=128)
    ray.init("local", num_cpus=2, object_store_memory=80 * _MIB, include_dashboard=False, log_to_driver=False)
    with _checkpoint(CALIBRATED) as small, _checkpoint(CHECKED) as source, _tiny(1, 256) as tiny:
        plan = make_plan(open_checkpoint(source), config, RUN)
        inline = RUN.replace(workers=1, engine="inline")
        params = _run(small, inline, config)["params"]
        cpu, starts = [], []
        real: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(RUNS):
            cpu.append(_engine_cpu(small, inline, config))
            starts.append(_run(tiny, RUN.replace(workers=1))["running"])
            for workers, walls in real.items():
                walls.append(_run(source, RUN.replace(workers=workers), config)["wall"])
    rate, start = params / min(cpu), min(starts)
    rates = replace(MEASURED, params_per_second=rate, actor_seconds=start)
    work = work_of_plan(plan, RUN)
    lines = [
        f"{work.params.sum() / 1e9:.2f} B weights in {work.shards} shards; beside it, of another model: "
        f"{rate / 1e6:.0f} Mparam/s a worker, {start:.1f} s until actors work\n",
        "| workers | measured, best (all) | simulated |",
        "|---|---|---|",
    ]
    for workers, walls in real.items():
        simulated = Simulation(work, rates, LOCAL, workers).run().seconds
        every = ", ".join(f"{wall:.1f}" for wall in sorted(walls))
        lines.append(f"| {workers} | {min(walls):.1f} s ({every}) | {simulated:.1f} s |")
    return "\n".join(lines)


@contextmanager
def _tiny(layers: int, size: int) -> Iterator[str]:
    """A checkpoint of `layers` small matrices, `size` × `size`, in float32."""
    weight = np.random.default_rng(1).standard_normal((size, size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        save_file(
            {f"layers.{number}.weight": weight + number for number in range(layers)},
            f"{folder}/model.safetensors",
        )
        yield folder


def _run(source: str, run: RunConfig, config: QuantizationConfig = INT8) -> dict[str, float]:
    """Quantizes `source` in this process. Returns seconds of the whole run (wall) and of its engine (running), and its
    number of weights (params)."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        report = quantize(source, f"{folder}/target", config, run).report
        wall = time.perf_counter() - start
    return {"wall": wall, "running": report.run.phases["running"], "params": float(report.totals.params)}


def _engine_cpu(source: str, run: RunConfig, config: QuantizationConfig = INT8) -> float:
    """CPU seconds that this process spends in the engine: with `inline` on the work, with `ray` on handing it out."""
    from arrowquant_dist.engine.inline import InlineEngine
    from arrowquant_dist.engine.ray import RayEngine

    engine: Any = InlineEngine if run.engine == "inline" else RayEngine
    untimed, spent = engine.run, []

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return untimed(*arguments, **named)
        finally:
            spent.append(time.process_time() - start)

    engine.run = timed
    try:
        _run(source, run, config)
    finally:
        engine.run = untimed
    return spent[0]


def _driver_phases(layers: int) -> tuple[float, float]:
    """Seconds of planning per layer, and of everything after the engine per row block."""
    with _tiny(layers, 64) as source, tempfile.TemporaryDirectory() as folder:
        run = RunConfig(engine="inline")
        start = time.perf_counter()
        report = quantize(source, f"{folder}/target", INT8, run).report
        wall = time.perf_counter() - start
    phases = report.run.phases
    return phases["planning"] / layers, (wall - phases["planning"] - phases["running"]) / layers


def _client_seconds() -> tuple[float, float]:
    """CPU seconds per byte that this process spends on reading from S3 and on writing to it."""
    from tests.servers.seaweedfs import SeaweedFS

    nbytes = 512 * _MIB
    data = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        server = SeaweedFS(Path(folder))
        try:
            store = open_store(server.make_bucket("measure"), Storage(server.storage_options))
            written = _cpu(lambda: _write(store, data))
            read = _cpu(lambda: _read(store, nbytes))
        finally:
            server.stop()
    return read / nbytes, written / nbytes


def _write(store: Store, data: np.ndarray) -> None:
    with store.open_writer("object") as writer:
        for start in range(0, data.size, 32 * _MIB):
            writer.write(data[start : start + 32 * _MIB].data)


def _read(store: Store, nbytes: int) -> None:
    out = np.empty(64 * _MIB, np.uint8)
    for start in range(0, nbytes, out.size):
        store.read_into("object", start, out)


def _cpu(act: Callable[[], None]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


@contextmanager
def _checkpoint(tensors: Shapes) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), tensors, 1 << 30)
        yield folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["rates", "check"])
    options = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), os.environ.get("PYTHONPATH", "")]
    )  # for Ray's workers
    if options.what == "rates":
        print(json.dumps(measure_rates(), indent=2))
    else:
        print(check())
    return 0


if __name__ == "__main__":
    sys.exit(main())
