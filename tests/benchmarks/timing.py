"""Seconds of functions and of whole processes; contenders take turns, so that a busy machine slows them all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


def best_seconds(contenders: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The fastest of `runs` rounds of each, after one that does not count. What a call returns is let go of outside
    of the measured time."""
    best = dict.fromkeys(contenders, float("inf"))
    for name, call in contenders.items():
        _timed(call, {name: 0.0}, name)
    for _ in range(runs):
        for name, call in contenders.items():
            _timed(call, best, name)
    return best


def _timed(call: Callable[[], object], best: dict[str, float], name: str) -> None:
    start = time.perf_counter()
    result = call()
    best[name] = min(best[name], time.perf_counter() - start)
    del result


@dataclass(frozen=True, slots=True)
class ProcessRun:
    """One process, from its start to its end. cpu_seconds: user and system. peak_nbytes: its largest resident set."""

    seconds: float
    cpu_seconds: float
    peak_nbytes: int
    output: str


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ProcessRun:
    """Runs `command` to its end. Raises RuntimeError, with what it wrote to stderr, where it fails."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=errors, env={**os.environ, **(environment or {})}
        )
        # wait4 and not Popen.wait: it says what this one child used, not the largest of all so far
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{command} ended with {process.returncode}: {errors.read()[-2000:]}")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return ProcessRun(seconds, usage.ru_utime + usage.ru_stime, peak, output.read())
