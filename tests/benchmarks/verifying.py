"""`verify` of a dataset with many parts: the time per row has to be the same however many parts there are.

`python -m tests.benchmarks.verifying FOLDER PARTS` is the process that this starts: it makes such a dataset, verifies
it, and reports how long that took.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.table import Row, Table, Target, at_most
from tests.benchmarks.timing import run_process

PARTS = 2_000
_ROWS_A_PART = 100
_SHAPE = (16, 16)
_NBYTES = 4 * _SHAPE[0] * _SHAPE[1]
_PER_FILE = 10_000


def tables(parts: int, folder: str | None) -> Iterator[Table]:
    few, many = (measure(count, folder) for count in (parts // 4, parts))
    rows = (
        Row("wall", many["seconds"], "s"),
        Row("CPU", many["cpu_seconds"], "s"),
        Row(
            "CPU a row",
            1e6 * many["cpu_seconds"] / many["rows"],
            "µs",
            f"the same in {parts // 4:,} parts",
            1e6 * few["cpu_seconds"] / few["rows"],
            Target(1.5, at_most=True, of_ratio=True),
        ),
        Row("peak memory of the process", many["peak"] / 1e9, "GB", target=at_most(2)),
    )
    yield Table(f"verify of {many['rows']:,.0f} rows in {many['parts']:,.0f} parts", rows)


def measure(parts: int, folder: str | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        write_source(Path(name, "model"), parts * _ROWS_A_PART)
        process = run_process([sys.executable, "-m", "tests.benchmarks.verifying", name])
    found: dict[str, float] = json.loads(process.output)
    return {**found, "peak": process.peak_nbytes}


def write_source(folder: Path, layers: int) -> None:
    """Writes small matrices of noise, 10,000 per file."""
    folder.mkdir()
    for number, first in enumerate(range(0, layers, _PER_FILE)):
        names = range(first, min(first + _PER_FILE, layers))
        header = {
            f"layers.{name}.weight": {
                "dtype": "F32",
                "shape": _SHAPE,
                "data_offsets": [place * _NBYTES, (place + 1) * _NBYTES],
            }
            for place, name in enumerate(names)
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        values = np.random.default_rng(number).standard_normal(len(names) * _SHAPE[0] * _SHAPE[1])
        with (folder / f"model-{number:05d}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(values.astype("<f4").tobytes())


def run(folder: Path) -> dict[str, float]:
    """Makes the dataset, with about _ROWS_A_PART rows per part, and verifies it."""
    from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
    from arrowquant_dist.plan.cut import BLOCK_OVERHEAD_NBYTES
    from arrowquant_dist.verify import verify

    settings = RunConfig(engine="inline", shard_bytes=_ROWS_A_PART * (_NBYTES + BLOCK_OVERHEAD_NBYTES))
    ArrowQuantizer(QuantizationConfig(), settings).quantize(str(folder / "model"), str(folder / "target"))
    started, cpu_started = time.perf_counter(), time.process_time()
    report = verify(str(folder / "target"))
    if not report.is_sound:
        raise RuntimeError(f"{report.problems[0]}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "rows": report.rows,
        "parts": report.objects,
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
