"""Peak memory of a loader's process above its memory when the loader is open, for several budgets: verified streams
whose tensors are not kept, from local disk and from an S3 server on this machine.

Each is a process of its own, `python -m tests.benchmarks.peaks URI BUDGET OPTIONS_AS_JSON`, with glibc's malloc in its
default state; the kernel reports the largest resident memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.config.choices import CompressionName
from arrowquant_dist.machine import status_nbytes
from tests.benchmarks.source import bfloat16_bits
from tests.benchmarks.table import Row, Table, at_most
from tests.benchmarks.uploading import upload
from tests.servers.seaweedfs import SeaweedFS

MIB = 1 << 20
ALLOWED_NBYTES = 32 * MIB  # above the budget
_COLUMNS = 1024
_TIMES = 4  # times the budget: size of all values, decoded
_SHARES = (1 / 3, 1 / 8, 1 / 8, 1 / 64, 1 / 256)  # of the budget: decoded sizes of layers, over and over
_COMPRESSIONS: tuple[CompressionName, ...] = ("none", "zstd")


def tables(budgets: list[int], folder: str | None) -> Iterator[Table]:
    """budgets: budgets in MiB, with a table each. Takes about seven times the largest one of disk."""
    for budget in budgets:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield _table(budget * MIB, Path(place))


def _table(budget: int, folder: Path) -> Table:
    source = folder / "source.safetensors"
    _write_source(source, budget)
    rows = []
    for compression in _COMPRESSIONS:
        target = folder / compression
        run = RunConfig(engine="inline", compression=compression)
        ArrowQuantizer(QuantizationConfig("int8"), run).quantize(source, target)
        rows.append(_row(f"local, {compression}", str(target), budget, {}))
        rows.append(_remote_row(compression, target, budget, folder))
    return Table(
        f"Peak of a verified stream, a budget of {budget // MIB} MiB, {_TIMES} times the data", tuple(rows)
    )


def _remote_row(compression: str, target: Path, budget: int, folder: Path) -> Row:
    server = SeaweedFS(folder / "server")
    try:
        uri, options = server.make_bucket("peaks"), server.storage_options
        upload(target, uri, options)
        return _row(f"S3, {compression}", uri, budget, options)
    finally:
        server.stop()


def _row(name: str, uri: str, budget: int, options: dict[str, Any]) -> Row:
    command = [sys.executable, "-m", "tests.benchmarks.peaks", uri, str(budget), json.dumps(options)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    return Row(name, int(said.stdout) / MIB, "MiB", target=at_most((budget + ALLOWED_NBYTES) / MIB))


def _write_source(path: Path, budget: int) -> None:
    """Writes bfloat16 layers that take `_TIMES` times `budget` in float32, each of which fits the budget."""
    header: dict[str, Any] = {}
    offset = done = 0
    while done < _TIMES * budget:
        rows = max(1, int(budget * _SHARES[len(header) % len(_SHARES)]) // (4 * _COLUMNS))
        stop = offset + 2 * rows * _COLUMNS
        header[f"l{len(header):04}"] = {
            "dtype": "BF16",
            "shape": [rows, _COLUMNS],
            "data_offsets": [offset, stop],
        }
        offset, done = stop, done + 4 * rows * _COLUMNS
    text = json.dumps(header).encode()
    values = bfloat16_bits(np.random.default_rng(0), 1 << 22)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset // 2, values.size):
            file.write(values[: offset // 2 - start].data)


def main() -> None:
    uri, budget, options = sys.argv[1:]
    with WeightLoader(uri, int(budget), json.loads(options), dtype="float32") as loader:
        loader.read(loader.keys()[-1])  # what is loaded and compiled once does not count as the budget's
        before = status_nbytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory
        for _, tensor in loader:
            float(tensor[0, 0])
    print(status_nbytes("VmHWM") - before)


if __name__ == "__main__":
    main()
