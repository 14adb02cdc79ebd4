"""How long loading takes: all of MiniLM in float32, and raw values from the page cache."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np
import torch
import xxhash
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.config.choices import CompressionName
from tests.benchmarks.decoding import decoding
from tests.benchmarks.table import Row, Table, Target
from tests.benchmarks.timing import all_seconds

# name → config, compression, upper limit in multiples of safetensors' time
_KINDS: dict[str, tuple[QuantizationConfig, CompressionName, float]] = {
    "int8 zstd": (QuantizationConfig("int8"), "zstd", 1.3),
    "int8 raw": (QuantizationConfig("int8"), "none", 1.0),
    "int2 raw": (QuantizationConfig("int2", per_channel=False, method="rtn"), "none", 0.9),
}
_CONTROL = "decoding alone"
_PEER = "load_file of fp16, .float()"
_CHUNK_NBYTES = 1 << 20
_PLAIN = "pread and xxh3_128 of each MiB"  # in Python, straight into the tensors

Stretch = tuple[
    int, int, np.ndarray
]  # a file descriptor, the offset of the bytes in the file, and their destination


def tables(runs: int, nbytes: int, folder: str | None) -> Iterator[Table]:
    """nbytes: size of the raw values. The first table takes 100 MB of disk, the second as much as these values."""
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
    with ExitStack() as open_files:
        for name in _KINDS:
            jobs[f"{_CONTROL}, {name}"] = open_files.enter_context(decoding(folder / name))
        seconds = {name: 1000 * median(found) for name, found in all_seconds(jobs, runs).items()}
    rows = []
    for name, (_, _, most) in _KINDS.items():
        rows.append(Row(name, seconds[name], "ms", _PEER, seconds[_PEER], _most(most)))
        rows.append(
            Row(f"{name}, the machine's limit", seconds[name], "ms", _CONTROL, seconds[f"{_CONTROL}, {name}"])
        )
    return Table(f"MiniLM, opened and all tensors in float32, median of {runs}", tuple(rows))


def _raw(runs: int, nbytes: int, folder: Path) -> Table:
    side = 64
    rows = max(1, nbytes // (8 * side * 4))
    tensors = {
        f"l{i}": torch.full((rows, side), i, dtype=torch.int32) for i in range(8)
    }  # integers are kept as they are
    save_file(tensors, folder / "raw.safetensors")
    run = RunConfig(engine="inline", compression="none")
    ArrowQuantizer(QuantizationConfig("int8"), run).quantize(
        str(folder / "raw.safetensors"), str(folder / "raw")
    )
    parts = [str(path) for path in (folder / "raw" / "weights").rglob("*.parquet")]
    stored = sum(Path(part).stat().st_size for part in parts) / 1e9
    with WeightLoader(folder / "raw") as loader, ExitStack() as open_files, ThreadPoolExecutor(2) as pool:
        places = {name: torch.zeros_like(tensor) for name, tensor in loader}
        layers = [_stretches(loader, folder / "raw", name, open_files, places[name]) for name in places]
        jobs: dict[str, Callable[[], object]] = {
            "verified, into tensors": partial(_into, loader, places),
            "verified, into a module": partial(loader.load_into, _module(places)),
            "verified, borrowed": partial(_used, loader.stream().borrowed()),
            "verified, kept": partial(_all_of, folder / "raw"),
            "verified, codes kept": lambda: dict(iter(loader.as_codes())),
            f"{_PLAIN}, 1 thread": lambda: _read_plainly(layers),
            f"{_PLAIN}, 2 threads": lambda: [*pool.map(_read_plainly, (layers[0::2], layers[1::2]))],
            "cat": lambda: subprocess.run(["/bin/cat", *parts], stdout=subprocess.DEVNULL, check=True),
        }
        rates = {name: stored / median(found) for name, found in all_seconds(jobs, runs).items()}
    most = Target(0.8, of_ratio=True)
    targets = {"verified, into tensors": most, "verified, into a module": most}
    return Table(
        f"Raw values from the page cache, {stored:.2g} GB, median of {runs}",
        tuple(
            Row(name, rates[name], "GB/s", "cat", rates["cat"], targets.get(name))
            for name in jobs
            if name != "cat"
        ),
    )


def _into(loader: WeightLoader, places: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in places.items():
        loader.read_into(name, tensor)


def _module(places: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, tensor in places.items():
        module.register_buffer(name, tensor)
    return module


def _stretches(
    loader: WeightLoader, target: Path, name: str, open_files: ExitStack, tensor: torch.Tensor
) -> list[Stretch]:
    """Where the layer's values are stored and where they belong, one stretch per block."""
    out, done, found = tensor.reshape(-1).view(torch.uint8).numpy(), 0, []
    for block in loader.layer(name).blocks:
        assert block.ranges is not None
        file = open_files.enter_context((target / block.path).open("rb", buffering=0))
        data = block.ranges.data
        found.append((file.fileno(), data.offset, out[done : done + data.nbytes]))
        done += data.nbytes
    return found


def _read_plainly(layers: Sequence[Sequence[Stretch]]) -> None:
    for descriptor, offset, out in chain.from_iterable(layers):
        for start in range(0, out.size, _CHUNK_NBYTES):
            chunk = out[start : start + _CHUNK_NBYTES].data
            os.preadv(descriptor, [chunk], offset + start)
            xxhash.xxh3_128_digest(chunk)


def _used(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
    for _, _ in pairs:
        pass


def _all_of(path: Path) -> dict[str, torch.Tensor]:
    with WeightLoader(path, dtype="float32") as loader:
        return dict(iter(loader))


def _most(ratio: float) -> Target:
    return Target(ratio, at_most=True, of_ratio=True)
