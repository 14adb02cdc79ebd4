"""What a dataset takes to come back: all of MiniLM in float32, and raw values from the page cache."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from tests.benchmarks.table import Row, Table, Target
from tests.benchmarks.timing import best_seconds

# name → config, compression, most of safetensors' time
_KINDS = {
    "int8 zstd": (QuantizationConfig("int8"), "zstd", 1.3),
    "int8 raw": (QuantizationConfig("int8"), "none", 1.0),
    "int2 raw": (QuantizationConfig("int2", per_channel=False, method="rtn"), "none", 0.9),
}
_PEER = "load_file of fp16, .float()"


def tables(runs: int, nbytes: int, folder: str | None) -> Iterator[Table]:
    """nbytes: of the raw values. The first table takes 100 MB of the disk, the second as much as there are values."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        yield _minilm(runs, Path(place))
        yield _raw(runs, nbytes, Path(place))


def _minilm(runs: int, folder: Path) -> Table:
    for name, (config, compression, _) in _KINDS.items():
        ArrowQuantizer(config, RunConfig(engine="inline", compression=compression)).quantize(
            "minilm", str(folder / name)
        )
    halves = folder / "fp16.safetensors"
    with WeightLoader(folder / "int8 raw", dtype="float16") as loader:
        save_file(dict(iter(loader)), halves)
    jobs: dict[str, Callable[[], object]] = {name: partial(_all_of, folder / name) for name in _KINDS}
    jobs[_PEER] = lambda: {name: tensor.float() for name, tensor in load_file(halves).items()}
    seconds = best_seconds(jobs, runs)
    rows = tuple(
        Row(name, 1000 * seconds[name], "ms", _PEER, 1000 * seconds[_PEER], _most(most))
        for name, (_, _, most) in _KINDS.items()
    )
    return Table(f"MiniLM, opened and all tensors in float32, best of {runs}", rows)


def _raw(runs: int, nbytes: int, folder: Path) -> Table:
    side = 64
    rows = max(1, nbytes // (8 * side * 4))
    tensors = {f"l{i}": torch.full((rows, side), 1 + i / 8) for i in range(8)}
    save_file(tensors, folder / "raw.safetensors")
    run = RunConfig(engine="inline", compression="none")
    config = QuantizationConfig("int8", mixed_precision_layers=["l"])
    ArrowQuantizer(config, run).quantize(str(folder / "raw.safetensors"), str(folder / "raw"))
    parts = [str(path) for path in (folder / "raw" / "weights").rglob("*.parquet")]
    stored = sum(Path(part).stat().st_size for part in parts) / 1e9
    jobs: dict[str, Callable[[], object]] = {
        "verified, as a stream": partial(_all_of, folder / "raw"),
        "cat": lambda: subprocess.run(["/bin/cat", *parts], stdout=subprocess.DEVNULL, check=True),
    }
    seconds = best_seconds(jobs, runs)
    name = "verified, as a stream"
    row = Row(
        name, stored / seconds[name], "GB/s", "cat", stored / seconds["cat"], Target(0.8, of_ratio=True)
    )
    return Table(f"Raw values from the page cache, {stored:.2g} GB, best of {runs}", (row,))


def _all_of(path: Path) -> dict[str, torch.Tensor]:
    with WeightLoader(path, dtype="float32") as loader:
        return dict(iter(loader))


def _most(ratio: float) -> Target:
    return Target(ratio, at_most=True, of_ratio=True)
