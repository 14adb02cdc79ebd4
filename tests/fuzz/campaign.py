"""Runs many cases in a few processes, each within limits of time and memory. The result of each case names its seed."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from tests.conftest import CHECKOUT
from tests.fuzz.bounded import MAX_RESIDENT_NBYTES

SECONDS = 30
_FIRST_SECONDS = 240  # for the first case of a process: kernels may have to be compiled
FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a case.

    ended: `accepted …`, `refused …`, or FAILED with the reason. peak_nbytes: peak memory. cpu_seconds: CPU seconds of
    its process.
    """

    kind: str
    seed: int
    ended: str
    peak_nbytes: int
    cpu_seconds: float

    @property
    def is_failure(self) -> bool:
        return self.ended.startswith(FAILED)


def run_cases(cases: Iterable[tuple[str, int]], folder: Path, processes: int = 2) -> Iterator[Result]:
    """The results of the cases, in the order in which they end. A case is (kind of cases.py, seed)."""
    todo: SimpleQueue[tuple[str, int]] = SimpleQueue()
    done: SimpleQueue[Result | None] = SimpleQueue()
    for case in cases:
        todo.put(case)

    def work(number: int) -> None:
        try:
            _work(todo, done, folder / f"process-{number}")
        finally:
            done.put(None)

    with ThreadPoolExecutor(processes) as pool:
        workers = [pool.submit(work, number) for number in range(processes)]
        for _ in range(processes):
            while (result := done.get()) is not None:
                yield result
        for worker in workers:
            worker.result()


def _work(todo: SimpleQueue[tuple[str, int]], done: SimpleQueue[Result | None], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    worker: _Worker | None = None
    try:
        while True:
            try:
                kind, seed = todo.get_nowait()
            except Empty:
                return
            if worker is None:
                worker = _Worker(folder)
            result = worker.run(kind, seed)
            done.put(result)
            if worker.is_gone:
                worker = None
    finally:
        if worker is not None:
            worker.end()


class _Worker:
    """A process that runs worker.py."""

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "stderr.txt").open("w+b")
        self._limit = _FIRST_SECONDS
        self.is_gone = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(folder)],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def run(self, kind: str, seed: int) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{kind} {seed}\n".encode())
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], self._limit)
        line = self._process.stdout.readline() if ready else b""
        if line:
            found = json.loads(line)
            self._limit = SECONDS
            ended, peak = found["ended"], found["peak_nbytes"]
            if peak > MAX_RESIDENT_NBYTES:
                ended = f"{FAILED} it took {peak} bytes of memory; {ended}"
            return Result(kind, seed, ended, peak, found["cpu_seconds"])
        if not ready:
            self._process.send_signal(signal.SIGABRT)  # faulthandler reports where it hangs
        self._process.stdin.close()
        code = self._process.wait(SECONDS)
        self._log.seek(0)
        said = self._log.read()[-3000:].decode(errors="replace")
        self.end()
        how = f"the process ended with {code}" if ready else f"it hung for {self._limit} s"
        return Result(kind, seed, f"{FAILED} {how}: {said}", 0, 0)

    def end(self) -> None:
        self.is_gone = True
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
