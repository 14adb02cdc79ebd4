"""The control of a loader: the same bytes read, hashed, decompressed and decoded by as many threads, and no more."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from arrowquant_dist.arena import Allocate, Slabs
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.ranges import ZSTD_PREFIX_NBYTES
from arrowquant_dist.format.record import StoredRange
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.tensor import QuantizedTensor

_BITS = {"int8", "int4", "int3", "int2"}


@dataclass(frozen=True)
class _Job:
    """A block's codes, where they are, and the rest of it."""

    descriptor: int
    place: StoredRange
    is_compressed: bool
    rest: QuantizedTensor


@contextmanager
def decoding(path: Path) -> Iterator[Callable[[], list[np.ndarray]]]:
    """All that is quantized, to float32: the largest first, of files that are open, with scales at hand."""
    dataset = Dataset.open(str(path))
    files: dict[str, int] = {}
    jobs = []
    for layer in dataset.layers.values():
        for block in layer.blocks:
            if block.ranges is not None and block.header.quant_type in _BITS:
                if block.path not in files:
                    files[block.path] = os.open(path / block.path, os.O_RDONLY)
                is_compressed = block.ranges.compression == "zstd"
                rest = dataset.read_block(block)
                jobs.append(_Job(files[block.path], block.ranges.data, is_compressed, rest))
    jobs.sort(key=lambda job: -job.place.nbytes)
    memories = threading.local()

    def one(job: _Job, allocate: Allocate) -> np.ndarray:
        if getattr(memories, "codes", np.empty(0)).size < job.place.stored_nbytes:
            memories.codes = np.empty(job.place.stored_nbytes, np.uint8)
        codes = memories.codes[: job.place.stored_nbytes]
        os.preadv(job.descriptor, [codes.data], job.place.offset)
        if job.is_compressed:
            plain = pa.Codec("zstd").decompress(pa.py_buffer(codes), job.place.nbytes + ZSTD_PREFIX_NBYTES)
            codes = np.frombuffer(plain, np.uint8)[ZSTD_PREFIX_NBYTES:]
        xxhash.xxh3_128_digest(codes.data)
        out = allocate(4 * int(np.prod(job.rest.shape)))
        replace(job.rest, codes=codes).values_into(out, "float32")
        return out

    def run() -> list[np.ndarray]:
        allocate = Slabs().take
        with ThreadPoolExecutor(usable_cpus()) as pool:
            return list(pool.map(lambda job: one(job, allocate), jobs))

    try:
        yield run
    finally:
        for descriptor in files.values():
            os.close(descriptor)
