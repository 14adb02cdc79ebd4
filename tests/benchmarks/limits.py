"""What the machine gives one thread: figures that limit all others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import xxhash
from isal import isal_zlib

from arrowquant_dist import QuantizationConfig, quantize_tensor
from tests.benchmarks.source import bfloat16_bits
from tests.benchmarks.table import Row, Table
from tests.benchmarks.timing import best_seconds


def tables(nbytes: int, runs: int, folder: str | None) -> Iterator[Table]:
    """nbytes: size of the memory that is worked on."""
    side = max(64, int(nbytes**0.5))
    bits = bfloat16_bits(np.random.default_rng(0), side * side).reshape(side, side)
    weight = torch.from_numpy(bits).view(torch.bfloat16)
    codes = quantize_tensor(weight, QuantizationConfig("int8")).codes
    with tempfile.TemporaryDirectory(dir=folder) as name:
        jobs = _jobs(codes, Path(name))
        seconds = best_seconds(jobs, runs)
    rows = tuple(Row(name, codes.nbytes / 1e9 / taken, "GB/s") for name, taken in seconds.items())
    yield Table(f"Limits: one thread, {codes.nbytes / 2**20:.0f} MiB of int8 codes, best of {runs}", rows)


def _jobs(codes: np.ndarray, folder: Path) -> dict[str, Callable[[], object]]:
    copy, path = np.empty_like(codes), folder / "codes"
    codec = pa.Codec("zstd", compression_level=1)
    path.write_bytes(codes.data)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            file.readinto(copy.data)

    def write() -> None:
        with (folder / "written").open("wb", buffering=0) as file:
            file.write(codes.data)
        (folder / "written").unlink()

    return {
        "memcpy": lambda: np.copyto(copy, codes),
        "memcpy to fresh memory": codes.copy,
        "read from the page cache": read,
        "write to the page cache (a new file)": write,
        "xxh3_128": lambda: xxhash.xxh3_128_digest(codes.data),
        "crc32 (Parquet's page checksum)": lambda: isal_zlib.crc32(codes.data),
        "zstd level 1": lambda: codec.compress(codes.data),
    }
