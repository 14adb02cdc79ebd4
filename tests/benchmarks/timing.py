"""Times functions and whole processes. Contenders take turns, so that a busy machine slows all of them."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def all_seconds(
    contenders: Mapping[str, Callable[[], object]],
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """The seconds of each contender in each of `runs` rounds, after a round that does not count. What a call returns is
    freed outside the measured time.

    clock: use time.thread_time for work on the calling thread alone; it stands still while others have the CPU.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        _seconds(call, clock)
    for _ in range(runs):
        for name, call in contenders.items():
            found[name].append(_seconds(call, clock))
    return found


def best_seconds(contenders: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    return {name: min(seconds) for name, seconds in all_seconds(contenders, runs).items()}


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    result = call()
    seconds = clock() - start
    del result
    return seconds


# A small process between this one and the measured one. Linux counts the memory of the process that another was forked
# from (here torch, and what `settle` touched) into its ru_maxrss, so the measured one is forked from something small.
_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(process, 0)
found = [time.perf_counter() - start, os.waitstatus_to_exitcode(status), usage.ru_maxrss]
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


@dataclass(frozen=True, slots=True)
class ProcessRun:
    """A process that has ended.

    seconds: time from its start to its end. peak_nbytes: largest resident set. output: its stdout.
    """

    seconds: float
    peak_nbytes: int
    output: str


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ProcessRun:
    """Runs `command`, whose first word is a path, to its end. Raises RuntimeError with its stderr if it fails."""
    with tempfile.NamedTemporaryFile("r") as found:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, found.name]
        done = subprocess.run(
            [*launcher, *command],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, code, peak = json.load(found)
    if code != 0:
        raise RuntimeError(f"{command} ended with {code}: {done.stderr[-2000:]}")
    return ProcessRun(seconds, peak * (1 if sys.platform == "darwin" else 1024), done.stdout)


def settle(nbytes: int) -> None:
    """Touches `nbytes` of memory and frees it, just before something is measured.

    A virtual machine may give free memory back to its host, and needs 3 s of kernel time per GiB to get it again: a
    plain copy took 2.1 s on a machine that had been idle, and 0.3 s directly afterwards.
    """
    touched = np.empty(nbytes, np.uint8)
    touched[:: mmap.PAGESIZE] = 1


@contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """A new empty folder for what a measured job writes, removed afterwards with everything in it."""
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder)
