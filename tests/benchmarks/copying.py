"""The least that a file-to-file job can do: reading every byte and writing half as many, without looking at them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK_NBYTES = 8 << 20
COPY = "plain copy, reads all, writes half"


def copy_half(source: Path, folder: Path, threads: int) -> None:
    """Copies half of the bytes: threads take chunks of 8 MiB in turn, each with a buffer and an output file of its own.
    Nothing is fsynced."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda k: _copy_every(source, folder / f"copy-{k}", k, threads), range(threads)))


def _copy_every(source: Path, target: Path, first: int, step: int) -> None:
    buffer = memoryview(bytearray(CHUNK_NBYTES))
    descriptor = os.open(source, os.O_RDONLY)
    with target.open("wb", buffering=0) as out:
        for start in range(first * CHUNK_NBYTES, os.fstat(descriptor).st_size, step * CHUNK_NBYTES):
            count = os.preadv(descriptor, [buffer], start)
            written = 0
            while written < count // 2:
                written += out.write(buffer[written : count // 2])
    os.close(descriptor)


def warm(source: Path) -> None:
    """Brings the file into the page cache."""
    with source.open("rb", buffering=0) as file:
        while file.read(CHUNK_NBYTES):
            pass
