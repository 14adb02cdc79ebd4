"""`--size` without data against `mse` int4 of the same file in as many bytes: whole processes with two workers.

Some rows of each layer, 16 million values of all layers together, decide how it is stored, so the time for that does
not grow with the file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.copying import warm
from tests.benchmarks.files import THREADS
from tests.benchmarks.source import write_checkpoint
from tests.benchmarks.table import Row, Table, ratio_of
from tests.benchmarks.timing import emptied, run_process, settle

_INT4 = ("--quant", "int4", "--method", "mse")


def tables(params: int, runs: int, folder: str | None) -> Iterator[Table]:
    """folder: a folder on the disk to measure; about 3 bytes per parameter are needed there."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source = Path(name, "model.safetensors")
        count = write_checkpoint(source, params)
        by_mse = by_size = float("inf")
        for _ in range(runs):
            seconds, nbytes = _quantize(source, count, *_INT4)
            by_mse = min(by_mse, seconds)
            by_size = min(by_size, _quantize(source, count, "--size", f"{nbytes}B")[0])
    title = f"--size, {count / 1e9:.3g} B parameters bfloat16, {THREADS} threads, best of {runs}"
    rates = [count / 1e6 / seconds for seconds in (by_size, by_mse)]
    yield Table(title, (Row("--size", rates[0], "Mparam/s", "int4 g128 mse", rates[1], ratio_of(0.5)),))


def _quantize(source: Path, count: int, *options: str) -> tuple[float, int]:
    """The seconds of the process, and the bytes of the parts."""
    out = source.parent / "out"
    command = [sys.executable, "-m", "arrowquant_dist", "quantize", str(source), str(out), *options]
    warm(source)
    settle(count)
    with emptied(out):
        run = run_process([*command, "--engine", "inline", "--workers", str(THREADS), "--json"])
        parts = (out / "weights").rglob("*.parquet")
        return run.seconds, sum(part.stat().st_size for part in parts)
