"""One export, a copy of its bytes, or the least that any export has to do, in a process of its own:
`python -m tests.benchmarks.export_one JOB` → JSON.

JOB: {"job": "export", "source", "out", "format", "budget", "workers", "options"}, or "copy", "decompress" or "pack"
as the job, which take no format and no budget. options: fsspec's options for both places. "kernels": what of Numba the
process has before seconds and memory are measured: "none" of it, the library "imported", or the decoding kernels
"loaded" (or compiled).
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from arrowquant_dist import QuantizationConfig, quantize_tensor
from arrowquant_dist.config import RunConfig, Storage, Transfer
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.format.digests import chunk_digests, row_checksum
from arrowquant_dist.storage.base import ObjectWriter, Store
from arrowquant_dist.storage.open import open_store

_PIECE_NBYTES = 8 << 20
_AHEAD = 4  # pieces of a file that are read while another is written
_TRANSFER = Transfer(parts_in_flight=6)  # as for an export with a budget of 1 GiB


class _Hashed:
    """A writer that also computes the hash of the file, which an export records for each file."""

    def __init__(self, writer: ObjectWriter) -> None:
        self._writer, self._hash = writer, xxhash.xxh3_128()

    def write(self, data: memoryview) -> None:
        self._hash.update(data)
        self._writer.write(data)

    def room(self, nbytes: int) -> np.ndarray | None:
        return self._writer.room(nbytes)


WriteBlock = Callable[[_Hashed, StoredBlock, Sequence[np.ndarray]], None]  # data, scales and zero points


def main() -> None:
    job = json.loads(sys.argv[1])
    if job.get("kernels") == "imported":
        importlib.import_module("numba")
    elif job.get("kernels") == "loaded":
        quantize_tensor(np.ones((4, 64), np.float32), QuantizationConfig("int8")).values()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory
    started = time.perf_counter()
    cpu = time.process_time()
    {"export": _export, "copy": _copy, "decompress": _decompress, "pack": _pack}[job["job"]](job)
    found = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps({**found, "peak_nbytes": _resident("VmHWM") - before}))


def _export(job: Mapping[str, Any]) -> None:
    run = RunConfig(engine="inline", workers=job["workers"], storage_options=job["options"])
    options = ExportOptions(format=job["format"], memory_budget=job["budget"])
    export_dataset(job["source"], job["out"], options, run)


def _copy(job: Mapping[str, Any]) -> None:
    """Copies each object by ranges, some of them read ahead, with the client that exports use and a thread per
    object."""
    storage = Storage(job["options"], _TRANSFER)
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


def _decompress(job: Mapping[str, Any]) -> None:
    """Does what every export of unchanged codes has to do, and nothing else: values are read, decompressed by pyarrow,
    verified and written, with scales cut to the bytes that they have in 16 bits, and what is written is hashed. One
    thread per file."""
    _each_file(job, _write_plain)


def _pack(job: Mapping[str, Any]) -> None:
    """The same for GGUF, where blocks have more bytes and codes are in other places: int4 in groups becomes Q4_0, in
    one piece of memory. Nothing is planned, and no scale is looked at."""
    _each_file(job, _write_blocks)


def _each_file(job: Mapping[str, Any], write: WriteBlock) -> None:
    storage = Storage(job["options"], _TRANSFER)
    dataset, out = Dataset.open(job["source"], storage), open_store(job["out"], storage)
    blocks = [block for layer in dataset.layers.values() for block in layer.blocks]
    workers = job["workers"]
    ends = [round(len(blocks) * share / workers) for share in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        shares = [blocks[start:stop] for start, stop in pairwise(ends)]
        list(
            pool.map(lambda i: _write_file(dataset.store, out, f"{i}.bin", shares[i], write), range(workers))
        )


def _write_file(
    source: Store, out: Store, path: str, blocks: Sequence[StoredBlock], write: WriteBlock
) -> None:
    memories, codec = [np.empty(0, np.uint8)] * 3, pa.Codec("zstd")
    with out.open_new(path) as file:
        writer = _Hashed(file)
        for block in blocks:
            ranges = block.ranges
            if ranges is None:
                raise ValueError(f"{block.path} has no index")
            values = []
            for i, value in enumerate((ranges.data, ranges.scales, ranges.zero_points)):
                if memories[i].size < value.stored_nbytes:
                    memories[i] = np.empty(value.stored_nbytes, np.uint8)
                stored = memories[i][: value.stored_nbytes]
                source.read_into(block.path, value.offset, stored)
                plain = stored
                if ranges.compression != "none" and value.nbytes:  # the first four bytes give the length
                    decoded = codec.decompress(pa.py_buffer(stored), value.nbytes + 4)
                    plain = np.frombuffer(decoded, np.uint8)[4:]
                values.append(plain)
            _verify(block, *values)
            write(writer, block, values)


def _verify(block: StoredBlock, data: np.ndarray, scales: np.ndarray, zero_points: np.ndarray) -> None:
    numbers = scales.view(np.float32), zero_points.view(np.float32)
    if row_checksum(chunk_digests(data), *numbers) != block.header.checksum:
        raise ValueError(f"{block.header.layer_name} is damaged")


def _write_plain(writer: _Hashed, _: StoredBlock, values: Sequence[np.ndarray]) -> None:
    data, *numbers = values
    for part in (data, *(found[: found.size // 2] for found in numbers)):
        writer.write(part.data)


def _write_blocks(writer: _Hashed, block: StoredBlock, values: Sequence[np.ndarray]) -> None:
    from arrowquant_dist.export.gguf.blocks import BLOCKS
    from arrowquant_dist.kernels.halves import to_halves  # imports LLVM, which no other job needs

    data, scales, _ = values
    row = block.header
    if row.quant_type != "int4":
        writer.write(data.data)
        return
    layout = BLOCKS["Q4_0"]
    places = (1, 1, row.rows, row.groups_per_row, row.group_size // layout.values)
    halves = to_halves(scales.view(np.float32)).reshape(*places[:-1], 1)
    room = writer.room(math.prod(places) * layout.nbytes)
    out = np.empty(math.prod(places) * layout.nbytes, np.uint8) if room is None else room
    codes = data.reshape(*places, -1)
    layout.fill(codes, [np.broadcast_to(halves, places)], out.reshape(*places, -1))
    writer.write(out.data)


def _write(read: tuple[Future[None], np.ndarray], writer: ObjectWriter) -> None:
    done, piece = read
    done.result()
    writer.write(piece.data)


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split(f"{name}:")[1].split(maxsplit=1)[0]) << 10


if __name__ == "__main__":
    main()
