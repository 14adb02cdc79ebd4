"""Runs of the sizes that the project is for: Ray actors against threads, two actors against one, memory by model, and
llama.cpp and a plain copy on the same machine in the same minutes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import big
from tests.benchmarks.actors import ActorMemory
from tests.benchmarks.copying import COPY, copy_half
from tests.benchmarks.gguf_files import llama_job, write_gguf
from tests.benchmarks.source import write_checkpoint
from tests.benchmarks.table import Row, Table, Target, at_most, ratio_of
from tests.benchmarks.timing import emptied

_MIB = 1 << 20
_REST_SECONDS = 6.0
_THREADS = 2
_LLAMA_PARAMS = (
    1_000_000_000  # of the file that llama.cpp quantizes, which has to fit the page cache, unlike the others
)
_LLAMA = "llama.cpp Q8_0, file to file"
_PLAIN = "ray 2, uncompressed"
_APART = "two processes of one worker, side by side"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run.

    wall: seconds of the process. engine: seconds of the workers alone. params: number of weights. above_idle: memory of
    the largest actor above its idle memory, in bytes.
    """

    wall: float
    engine: float
    params: int
    above_idle: int


Jobs = Mapping[str, Callable[[], Measured]]


def tables(models: list[str], runs: int, folder: str | None) -> Iterator[Table]:
    """folder: a folder on the disk to measure; the largest model needs 26 GB there."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        above_idle: dict[str, int] = {}
        llama = _llama_jobs(place)
        for model in models:
            source = place / model
            params = big.write_checkpoint(source, big.MODELS[model]) // 2
            limits = _apart_jobs(source, place) | _copy_jobs(source, place, params)
            found = _in_turns(_our_jobs(source, place) | limits | llama, runs)
            above_idle[model] = max(run.above_idle for run in found["ray 2"])
            best = {name: min(measured, key=lambda one: one.wall) for name, measured in found.items()}
            title = f"{model}: {params / 1e9:.2f} B parameters, int8 zstd, best of {runs}, {source.parent}"
            yield Table(title, _rows(best, above_idle[model]))
            shutil.rmtree(source)
        yield Table("memory of an actor above its idle, by model", tuple(_memory_rows(above_idle)))


def _our_jobs(source: Path, place: Path) -> dict[str, Callable[[], Measured]]:
    engines = {
        "inline 2": ("inline", 2, "zstd"),
        "ray 2": ("ray", 2, "zstd"),
        "ray 1": ("ray", 1, "zstd"),
        _PLAIN: ("ray", 2, "none"),  # as llama.cpp writes it
    }
    return {name: partial(_run, source, place / "target", *how) for name, how in engines.items()}


def _apart_jobs(source: Path, place: Path) -> dict[str, Callable[[], Measured]]:
    """Two processes that share nothing, each doing the whole job: the most that two CPUs, one memory and one disk
    give."""
    return {_APART: partial(_side_by_side, source, [place / "left", place / "right"])}


def _copy_jobs(source: Path, place: Path, params: int) -> dict[str, Callable[[], Measured]]:
    """Jobs that do the least that any run has to do."""

    def copy() -> None:
        for file in source.glob("*.safetensors"):
            copy_half(file, place / "copies", _THREADS)

    return {COPY: partial(_timed, copy, params, place / "copies")}


def _llama_jobs(place: Path) -> dict[str, Callable[[], Measured]]:
    """Jobs of llama.cpp; none if it is not installed."""
    gguf, out = place / "llama.gguf", place / "llama"
    job = llama_job(gguf, out, "Q8_0", _THREADS)
    if job is None:
        return {}
    plain = place / "llama.safetensors"
    params = write_checkpoint(plain, _LLAMA_PARAMS)
    write_gguf(plain, gguf, _LLAMA_PARAMS)
    plain.unlink()
    return {_LLAMA: partial(_timed, job, params, out)}


def _in_turns(jobs: Jobs, runs: int) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, job in jobs.items():
            _rest()
            found[name].append(job())
    return found


def _rest() -> None:
    """Waits until the machine is in the same state for each run: what the run before wrote is on disk, and its memory
    is free. On virtual machines, free memory goes back to the host within seconds, and touching it again costs more
    than compressing into it. A run right after another uses the memory that the other has just freed, and so looks much
    faster."""
    os.sync()
    time.sleep(_REST_SECONDS)


def _timed(job: Callable[[], object], params: int, folder: Path) -> Measured:
    with emptied(folder):
        started = time.perf_counter()
        job()
        seconds = time.perf_counter() - started
    return Measured(seconds, seconds, params, 0)


def _run(source: Path, target: Path, engine: str, workers: int, compression: str) -> Measured:
    with (
        emptied(target),
        _started(source, target, engine, workers, compression) as process,
        ActorMemory(process.pid) as memory,
    ):
        said = _said(process)
    return Measured(said["wall"], said["engine"], said["params"], memory.above_idle_nbytes)


def _side_by_side(source: Path, targets: list[Path]) -> Measured:
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(emptied(target))
        processes = [stack.enter_context(_started(source, one, "inline", 1, "zstd")) for one in targets]
        runs = [_said(process) for process in processes]
    params = sum(run["params"] for run in runs)
    return Measured(max(run["wall"] for run in runs), max(run["engine"] for run in runs), params, 0)


@contextmanager
def _started(
    source: Path, target: Path, engine: str, workers: int, compression: str
) -> Iterator[subprocess.Popen[str]]:
    """A process of run_one, which ends with the block, however that ends."""
    settings = json.dumps({"engine": engine, "workers": workers, "compression": compression})
    command = [sys.executable, "-m", "tests.benchmarks.run_one", str(source), str(target), settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON that run_one printed."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args!r} failed")
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    return said


def _rows(best: Mapping[str, Measured], above_idle: int) -> tuple[Row, ...]:
    inline, two = best["inline 2"], best["ray 2"]
    of_workers = {name: run.params / run.engine / 1e6 for name, run in best.items()}
    rates = {name: run.params / run.wall / 1e6 for name, run in best.items()}
    whole, unit = "whole process, ray 2 workers", "Mparam/s"
    return (
        Row(whole, two.wall, "s", "inline 2 workers", inline.wall, Target(1.5, at_most=True, of_ratio=True)),
        Row(whole, rates["ray 2"], unit, _LLAMA, rates.get(_LLAMA), ratio_of(2.5)),
        Row(f"{whole}, uncompressed", rates[_PLAIN], unit, _LLAMA, rates.get(_LLAMA), ratio_of(2.5)),
        Row(whole, rates["ray 2"], unit, COPY, rates[COPY]),
        Row(
            "ray: rate of 2 workers",
            of_workers["ray 2"],
            unit,
            "1 worker",
            of_workers["ray 1"],
            ratio_of(1.8),
        ),
        Row("ray: rate of 2 workers", of_workers["ray 2"], unit, _APART, of_workers[_APART]),
        Row("memory of an actor above its idle", above_idle / _MIB, "MiB", target=at_most(1024)),
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
