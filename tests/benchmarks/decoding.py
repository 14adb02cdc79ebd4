"""The control for a loader: the same bytes are read, hashed, decompressed and decoded by as many threads, and no more.

What a loader has to find out (which layers there are, and where) is known beforehand here. Files are open, nothing is
compared, no memory is counted, and the largest layers come first, so that no thread is left with one at the end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from arrowquant_dist.arena import Allocate, Slabs
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.zstd_pages import ZSTD_PREFIX_NBYTES
from arrowquant_dist.format.record import StoredRange
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.tensor import QuantizedTensor

_ITEMSIZE = 4  # float32


@dataclass(frozen=True)
class _Job:
    """A block to decode.

    places: where its data, scales and zero points are. rest: a tensor with everything else that decoding needs.
    """

    descriptor: int
    places: Sequence[StoredRange]
    is_compressed: bool
    rest: QuantizedTensor
    dtype: str


@contextmanager
def decoding(path: Path) -> Iterator[Callable[[], list[np.ndarray]]]:
    """A function that decodes all layers: float layers to float32, others as they are."""
    dataset = Dataset.open(str(path))
    files: dict[str, int] = {}
    jobs = []
    for layer in dataset.layers.values():
        for block in layer.blocks:
            if block.ranges is None:
                raise ValueError(f"{path} has no index")
            if block.path not in files:
                files[block.path] = os.open(path / block.path, os.O_RDONLY)
            ranges = block.ranges
            places = (ranges.data, ranges.scales, ranges.zero_points)
            dtype = "float32" if layer.is_float else layer.dtype
            rest = dataset.read_block(block)
            jobs.append(_Job(files[block.path], places, ranges.compression == "zstd", rest, dtype))
    jobs.sort(key=lambda job: -job.places[0].nbytes)
    memories = threading.local()

    def read(job: _Job, place: StoredRange) -> np.ndarray:
        """The stored value. Unless it was compressed, it is only valid until this thread reads the next one."""
        if not place.nbytes:
            return np.empty(0, np.uint8)
        if getattr(memories, "stored", np.empty(0)).size < place.stored_nbytes:
            memories.stored = np.empty(place.stored_nbytes, np.uint8)
        stored: np.ndarray = memories.stored[: place.stored_nbytes]
        os.preadv(job.descriptor, [stored.data], place.offset)
        if job.is_compressed:
            plain = pa.Codec("zstd").decompress(pa.py_buffer(stored), place.nbytes + ZSTD_PREFIX_NBYTES)
            stored = np.frombuffer(plain, np.uint8)[ZSTD_PREFIX_NBYTES:]
        xxhash.xxh3_128_digest(stored.data)
        return stored

    def one(job: _Job, allocate: Allocate) -> np.ndarray:
        data, *numbers = job.places
        scales, zero_points = (read(job, place).copy().view("<f4") for place in numbers)
        values = replace(job.rest, codes=read(job, data), scales=scales, zero_points=zero_points)
        count = int(np.prod(job.rest.shape))
        out = allocate(
            count * (_ITEMSIZE if job.dtype == "float32" else job.rest.codes.size // max(count, 1))
        )
        values.values_into(out, job.dtype)
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
