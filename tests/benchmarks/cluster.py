"""Runs of the sizes that the project is for: Ray actors against threads, two actors against one, memory by model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import big
from tests.benchmarks.actors import ActorMemory
from tests.benchmarks.table import Row, Table, Target, at_most

_MIB = 1 << 20
_REST_SECONDS = 6.0
LLAMA_CPP_Q8_0 = (
    126.0  # Mparam/s on 2 threads, file to file: measured when the project began, not in this run
)


@dataclass(frozen=True, slots=True)
class Measured:
    """wall: seconds of the process, engine: of the workers alone. above_idle: bytes, of the largest actor."""

    wall: float
    engine: float
    params: int
    above_idle: int


def tables(models: list[str], runs: int, folder: str | None) -> Iterator[Table]:
    """folder: on the disk to measure; the largest model needs 20 GB there."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        above_idle: dict[str, int] = {}
        for model in models:
            source = place / model
            big.write_checkpoint(source, big.MODELS[model])
            engines = {"inline 2": ("inline", 2), "ray 2": ("ray", 2), "ray 1": ("ray", 1)}
            found = _in_turns(source, place / "target", engines, runs)
            above_idle[model] = max(run.above_idle for run in found["ray 2"])
            best = {name: min(measured, key=lambda one: one.wall) for name, measured in found.items()}
            yield Table(
                f"{model}: {best['ray 2'].params / 1e9:.2f} B parameters, int8 zstd, {source.parent}",
                _rows(best, found),
            )
            shutil.rmtree(source)
        yield Table("memory of an actor above its idle, by model", tuple(_memory_rows(above_idle)))


def _in_turns(
    source: Path, target: Path, engines: dict[str, tuple[str, int]], runs: int
) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {name: [] for name in engines}
    for _ in range(runs):
        for name, (engine, workers) in engines.items():
            found[name].append(_run(source, target, engine, workers))
    return found


def _rest() -> None:
    """So that each run finds the machine in the same state: what the run before wrote is on the disk, and its memory
    free. On virtual machines free memory goes back to the host within seconds, and to touch it again costs more than
    to compress into it: a run right after another, which uses what that one has just let go of, looks much faster."""
    os.sync()
    time.sleep(_REST_SECONDS)


def _run(source: Path, target: Path, engine: str, workers: int) -> Measured:
    _rest()
    settings = json.dumps({"engine": engine, "workers": workers})
    command = [sys.executable, "-m", "tests.benchmarks.run_one", str(source), str(target), settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with ActorMemory(process.pid) as memory:
        out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command} failed")
    shutil.rmtree(target)
    said = json.loads(out.splitlines()[-1])
    return Measured(said["wall"], said["engine"], said["params"], memory.above_idle_nbytes)


def _rows(best: dict[str, Measured], found: dict[str, list[Measured]]) -> tuple[Row, ...]:
    inline, two, one = best["inline 2"], best["ray 2"], best["ray 1"]
    rate = two.params / two.wall / 1e6
    return (
        Row(
            "whole process, ray 2 workers",
            two.wall,
            "s",
            "inline 2 workers",
            inline.wall,
            Target(1.5, at_most=True, of_ratio=True),
        ),
        Row(
            "whole process, ray 2 workers",
            rate,
            "Mparam/s",
            "llama.cpp Q8_0, as noted",
            LLAMA_CPP_Q8_0,
            Target(2.5, of_ratio=True),
        ),
        Row(
            "ray: rate of 2 workers",
            two.params / two.engine / 1e6,
            "Mparam/s",
            "1 worker",
            one.params / one.engine / 1e6,
            Target(1.8, of_ratio=True),
        ),
        Row(
            "memory of an actor above its idle",
            max(run.above_idle for run in found["ray 2"]) / _MIB,
            "MiB",
            target=at_most(1024),
        ),
    )


def _memory_rows(above_idle: dict[str, int]) -> Iterator[Row]:
    first, *others = above_idle
    for model in others:
        yield Row(
            f"{model} against {first}",
            above_idle[model] / _MIB,
            "MiB",
            first,
            above_idle[first] / _MIB,
            Target(1.1, at_most=True, of_ratio=True),
        )
