"""File to dataset: a checkpoint on disk, read by this program as a process with two workers, and by other programs."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.copying import COPY, copy_half, warm
from tests.benchmarks.gguf_files import gguf_job, llama_job, write_gguf
from tests.benchmarks.source import write_checkpoint
from tests.benchmarks.table import Row, Table, at_most, ratio_of
from tests.benchmarks.timing import emptied, run_process, settle

THREADS = 2
_UNIT = "Mparam/s"
_GGUF_SLICE = 64 << 20  # values that gguf-py converts; its rate does not depend on how many
_CONFIGS = {
    "int8 zstd": "quant_type: int8\n",
    "int8 uncompressed": "quant_type: int8\nrun: {compression: none}\n",
    "int4 g128 asymmetric": "quant_type: int4\nper_channel: false\nsymmetric: false\n",
    "int2 g128 asymmetric": "quant_type: int2\nper_channel: false\nsymmetric: false\n",
}
_WRITTEN_AS_GGUF = ("Q8_0", "Q4_0")


@dataclass(frozen=True, slots=True)
class _Ours:
    """The best of the rounds.

    process_seconds: seconds of the process. run_seconds: seconds of the run inside it. peak_nbytes: largest memory.
    """

    process_seconds: float = float("inf")
    run_seconds: float = float("inf")
    peak_nbytes: int = 0

    def best_with(self, other: _Ours) -> _Ours:
        return _Ours(
            min(self.process_seconds, other.process_seconds),
            min(self.run_seconds, other.run_seconds),
            max(self.peak_nbytes, other.peak_nbytes),
        )


def tables(params: int, runs: int, folder: str | None, idle: float = 0.0) -> Iterator[Table]:
    """folder: a folder on the disk to measure, by default that of temporary files; needs about 4 bytes per parameter.
    idle: seconds to wait before each job; 0: its memory is touched just before (see `settle`)."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        source = place / "model.safetensors"
        count = write_checkpoint(source, params)
        ours, theirs = _measure(place, source, params, count, runs, idle)
    title = f"{count / 1e9:.3g} B parameters bfloat16, {THREADS} threads, best of {runs}"
    title += f", memory idle for {idle:g} s" if idle else ", memory touched just before"
    yield Table(f"File to dataset, {title}", tuple(_rate_rows(ours, theirs, count)))
    yield Table(
        "Peak memory of the process",
        tuple(Row(name, run.peak_nbytes / 2**20, "MiB", target=at_most(1024)) for name, run in ours.items()),
    )


def _measure(
    place: Path, source: Path, params: int, count: int, runs: int, idle: float
) -> tuple[dict[str, _Ours], dict[str, float]]:
    """Our measurements by config, and the rates of others in Mparam/s. All take turns; outputs are deleted at once."""
    jobs, counts = _peer_jobs(place, source, params, count)
    ours = dict.fromkeys(_CONFIGS, _Ours())
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(runs):
        for name, config in _CONFIGS.items():
            _prepare(source, count, idle)
            ours[name] = ours[name].best_with(_quantize(place, source, config))
        for name, job in jobs.items():
            _prepare(source, count, idle)
            with emptied(place / "out"):
                start = time.perf_counter()
                job()
                best[name] = min(best[name], time.perf_counter() - start)
    return ours, {name: counts[name] / 1e6 / seconds for name, seconds in best.items()}


def _prepare(source: Path, count: int, idle: float) -> None:
    """Brings the source into the page cache, and waits, or touches memory for what is written, alike for all."""
    warm(source)
    if idle:
        time.sleep(idle)
    else:
        settle(2 * count)


def _peer_jobs(
    place: Path, source: Path, params: int, count: int
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """The jobs of the peers that are installed, and how many values each converts."""
    out = place / "out"
    part = min(_GGUF_SLICE, count) // 2048 * 2048
    as_gguf = place / "model.gguf"
    found: dict[str, tuple[Callable[[], object] | None, int]] = {
        COPY: (lambda: copy_half(source, out, THREADS), count)
    }
    for what in _WRITTEN_AS_GGUF:
        found[f"gguf-py {what}"] = gguf_job(source, out, what, part, THREADS), part
        found[f"llama.cpp {what}"] = llama_job(as_gguf, out, what, THREADS), count
    jobs = {name: job for name, (job, _) in found.items() if job is not None}
    if any(name.startswith("llama.cpp") for name in jobs):
        write_gguf(source, as_gguf, params)
    return jobs, {name: converted for name, (_, converted) in found.items()}


def _quantize(place: Path, source: Path, config: str) -> _Ours:
    (place / "config.yaml").write_text(config)
    command = [sys.executable, "-m", "arrowquant_dist", "quantize", str(source), str(place / "out")]
    options = ["--config", str(place / "config.yaml"), "--engine", "inline", "--workers", str(THREADS)]
    with emptied(place / "out"):
        run = run_process([*command, *options, "--json"])
    wall = json.loads(run.output)["report"]["run"]["wall_seconds"]
    return replace(_Ours(run.seconds, wall), peak_nbytes=run.peak_nbytes)


def _rate_rows(ours: Mapping[str, _Ours], theirs: Mapping[str, float], count: int) -> Iterator[Row]:
    process = {name: count / 1e6 / run.process_seconds for name, run in ours.items()}
    inside = {name: count / 1e6 / run.run_seconds for name, run in ours.items()}

    def against(name: str, peer: str, least: float | None = None) -> Row:
        target = None if least is None else ratio_of(least)
        return Row(f"{name}, whole process", process[name], _UNIT, peer, theirs.get(peer), target)

    zstd, plain, four, two = _CONFIGS
    yield against(zstd, "llama.cpp Q8_0", 2.5)
    yield against(zstd, "gguf-py Q8_0", 2.5)
    yield against(plain, COPY, 0.7)
    yield Row(f"{plain}, the run alone", inside[plain], _UNIT, COPY, theirs[COPY])
    yield Row(f"{zstd}, the run alone", inside[zstd], _UNIT, COPY, theirs[COPY])
    yield Row(
        f"{zstd}, the run alone",
        inside[zstd],
        _UNIT,
        "gguf-py Q8_0",
        theirs.get("gguf-py Q8_0"),
        ratio_of(2.5),
    )
    yield against(four, "llama.cpp Q4_0")
    yield against(four, "gguf-py Q4_0")
    yield against(two, COPY)
