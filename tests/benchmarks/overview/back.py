"""Time to load a dataset, and to export it to other programs' files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from tests.benchmarks import exporting, streaming
from tests.benchmarks.kernels import grouped
from tests.benchmarks.overview.figures import Comparison, Measured
from tests.benchmarks.overview.to_disk import Source
from tests.benchmarks.table import NOT_INSTALLED
from tests.benchmarks.timing import all_seconds

LOADING = "load, verified, from the page cache"
STREAMING = "stream codes from S3, verified"
EXPORTING = "export, verified"
_FORMATS = ("compressed-tensors", "gguf")
_BF16 = "safetensors load_file of bf16, .float()"
_CODES = "safetensors load_file of the same codes, copied"


def loading(source: Source, runs: int, folder: Path) -> Iterator[Comparison]:
    """Loading. Each job ends with tensors in memory of their own: those of load_file are mapped, so they are only read
    by what is done with them afterwards. safetensors verifies nothing."""
    uncompressed = RunConfig(engine="inline", compression="none")
    for name, config in (("int8", QuantizationConfig("int8")), ("int4", grouped(4, symmetric=False))):
        ArrowQuantizer(config, uncompressed).quantize(source.file, folder / name)
    with WeightLoader(folder / "int8", dequantize=False) as loader:
        save_file(
            {name: torch.from_numpy(q.codes.copy()) for name, q in loader}, folder / "codes.safetensors"
        )
    jobs: dict[str, Callable[[], object]] = {
        "int8 → float32": partial(_decoded, folder / "int8"),
        "int4 → float32": partial(_decoded, folder / "int4"),
        _BF16: lambda: {name: value.float() for name, value in load_file(source.file).items()},
        "int8 codes as they are": partial(_codes, folder / "int8"),
        _CODES: lambda: {
            name: value.clone() for name, value in load_file(folder / "codes.safetensors").items()
        },
    }
    seconds = all_seconds(jobs, runs)
    rates = {name: Measured.of(source.count / 1e6, taken) for name, taken in seconds.items()}
    for name, peer in (
        ("int8 → float32", _BF16),
        ("int4 → float32", _BF16),
        ("int8 codes as they are", _CODES),
    ):
        yield Comparison(LOADING, name, "Mparam/s", rates[name], peer, rates[peer])


def streams(params: int, runs: int, pythons: Sequence[str], folder: Path) -> Iterator[Comparison]:
    """pythons: Python interpreters that may have Run:ai's streamer."""
    found, nbytes = streaming.measured(params, runs, str(folder), pythons)
    rates = {name: Measured.of(nbytes / 1e6, taken) for name, taken in found.items()}
    for compression in streaming.COMPRESSIONS:
        name = f"int8, compression: {compression}"
        theirs = rates.get(streaming.PEER)
        missing = NOT_INSTALLED if theirs is None else ""
        yield Comparison(STREAMING, name, "MB/s", rates[compression], streaming.PEER, theirs, missing)


def exports(nbytes: int, runs: int, folder: Path) -> Iterator[Comparison]:
    """nbytes: stored bytes of the dataset."""
    dataset = exporting.made_dataset(folder, nbytes)
    for name in _FORMATS:
        seconds, copied, written = exporting.measured_on_disk(dataset, name, runs, folder)
        ours, theirs = (Measured.of(written / 1e6, taken) for taken in (seconds, copied))
        yield Comparison(EXPORTING, name, "MB/s", ours, "copy of as many bytes, verified nothing", theirs)


def _decoded(path: Path) -> dict[str, torch.Tensor]:
    with WeightLoader(path, dtype="float32") as loader:
        return dict(iter(loader))


def _codes(path: Path) -> object:
    with WeightLoader(path, dequantize=False) as loader:
        return dict(iter(loader))
