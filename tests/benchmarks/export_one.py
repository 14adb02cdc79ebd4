"""One export, or a copy of its bytes, in a process of its own: `python -m tests.benchmarks.export_one JOB` → JSON.

JOB: {"job": "export", "source", "out", "format", "budget", "workers", "options"} or {"job": "copy", "source", "out",
"workers", "options"}; options: fsspec's of both places. With "kernels": "loaded", Numba is imported and has loaded (or
compiled) the kernels that decode, before seconds and memory are measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from arrowquant_dist import QuantizationConfig, quantize_tensor
from arrowquant_dist.config import RunConfig, Storage
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.storage.base import ObjectWriter, Store
from arrowquant_dist.storage.open import open_store

_PIECE_NBYTES = 8 << 20
_AHEAD = 4  # pieces of a file that are read while one is written


def main() -> None:
    job = json.loads(sys.argv[1])
    if job.get("kernels") == "loaded":
        quantize_tensor(np.ones((4, 64), np.float32), QuantizationConfig("int8")).values()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most is taken from now on
    started = time.perf_counter()
    {"export": _export, "copy": _copy}[job["job"]](job)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_nbytes": _resident("VmHWM") - before}))


def _export(job: Mapping[str, Any]) -> None:
    run = RunConfig(engine="inline", workers=job["workers"], storage_options=job["options"])
    options = ExportOptions(format=job["format"], memory_budget=job["budget"])
    export_dataset(job["source"], job["out"], options, run)


def _copy(job: Mapping[str, Any]) -> None:
    """Each object in ranges, some read ahead, by the client that exports use; a thread an object."""
    storage = Storage(job["options"])
    source, out = open_store(job["source"], storage), open_store(job["out"], storage)
    with ThreadPoolExecutor(job["workers"]) as pool:
        list(pool.map(lambda info: _copy_object(source, out, info.path, info.nbytes), source.list()))


def _copy_object(source: Store, out: Store, path: str, nbytes: int) -> None:
    memory = [np.empty(_PIECE_NBYTES, np.uint8) for _ in range(_AHEAD + 1)]
    reading: deque[tuple[Future[None], np.ndarray]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool, out.open_new(path) as writer:
        for number, start in enumerate(range(0, nbytes, _PIECE_NBYTES)):
            if len(reading) == _AHEAD:
                _write(reading.popleft(), writer)
            piece = memory[number % len(memory)][: min(_PIECE_NBYTES, nbytes - start)]
            reading.append((pool.submit(source.read_into, path, start, piece), piece))
        while reading:
            _write(reading.popleft(), writer)


def _write(read: tuple[Future[None], np.ndarray], writer: ObjectWriter) -> None:
    done, piece = read
    done.result()
    writer.write(piece.data)


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split(f"{name}:")[1].split(maxsplit=1)[0]) << 10


if __name__ == "__main__":
    main()
