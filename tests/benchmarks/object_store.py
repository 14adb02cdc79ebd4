"""A real S3 server on this machine: bytes read and written per second, and a whole run against a copy of the same
bytes.

The server shares the CPUs with what is measured, so the client's CPU seconds matter as much as the rates.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.config.choices import CompressionName
from arrowquant_dist.storage.open import open_store
from tests.benchmarks.source import write_checkpoint
from tests.benchmarks.table import Row, Table, ratio_of
from tests.servers.seaweedfs import SeaweedFS

MIB = 1 << 20
WORKERS = 2
BLOCK_NBYTES = 64 * MIB
_OBJECT_NBYTES = 256 * MIB
_THREADS = Transfer().requests
_RANGE = Transfer().range_bytes
_UNIT = "MiB/s"


@dataclass(frozen=True, slots=True)
class Measured:
    """The fastest round. seconds: its wall time. cpu_seconds: CPU seconds of this process, the client."""

    seconds: float
    cpu_seconds: float


def tables(params: int, runs: int, folder: str | None) -> Iterator[Table]:
    """folder: a folder on the disk that the server writes to. The last table needs about 6 bytes per parameter
    there."""
    with _server(folder) as server:
        yield from _read_tables(server, runs)
        yield from _write_tables(server, runs)
        yield _copy_table(server, params, runs, folder)


def _read_tables(server: SeaweedFS, runs: int) -> Iterator[Table]:
    uri = server.make_bucket("reads")
    data = np.random.default_rng(0).integers(0, 256, _OBJECT_NBYTES, np.uint8)
    with open_store(uri, Storage(server.storage_options)).open_writer("x") as writer:
        writer.write(data.data)
    out = np.empty_like(data)
    found = _rounds(dict(_readers(server, uri, out)), runs)
    assert np.array_equal(out, data)
    server.drop_bucket("reads")
    yield from _both("Read", found, runs)


def _readers(server: SeaweedFS, uri: str, out: np.ndarray) -> Iterator[tuple[str, Callable[[], object]]]:
    store = open_store(uri, Storage(server.storage_options))
    fs = _s3fs(server)
    path, view = f"{uri.removeprefix('s3://')}/x", out.data
    starts = range(0, len(view), _RANGE)

    def fill(start: int, answer: Any) -> None:
        view[start : start + _RANGE] = memoryview(answer)

    def threaded(read: Callable[[int], Any]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda start: fill(start, read(start)), starts))

    def cat_ranges() -> None:
        stops = [start + _RANGE for start in starts]
        for start, answer in zip(
            starts, fs.cat_ranges([path] * len(starts), list(starts), stops), strict=True
        ):
            fill(start, answer)

    yield "ours", lambda: store.read_into("x", 0, out)
    yield "s3fs, whole", lambda: view.__setitem__(slice(None), fs.cat_file(path))
    yield "s3fs, cat_ranges", cat_ranges
    arrow = _pyarrow(server).open_input_file(path)
    yield f"pyarrow, {_THREADS} threads", lambda: threaded(lambda start: arrow.read_at(_RANGE, start))
    if find_spec("obstore") is not None:
        import obstore

        other = _obstore(server, uri)
        yield (
            f"obstore, {_THREADS} threads",
            lambda: threaded(lambda start: obstore.get_range(other, "x", start=start, end=start + _RANGE)),
        )


def _write_tables(server: SeaweedFS, runs: int) -> Iterator[Table]:
    uri = server.make_bucket("writes")
    data = np.random.default_rng(0).bytes(_OBJECT_NBYTES)
    found = _rounds(dict(_writers(server, uri, data)), runs)
    server.drop_bucket("writes")
    yield from _both("Write", found, runs)


def _writers(server: SeaweedFS, uri: str, data: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    """The ways to write an object. Each has one that is replaced in every round, from pieces like those of a worker."""
    store, fs, path = (
        open_store(uri, Storage(server.storage_options)),
        _s3fs(server),
        uri.removeprefix("s3://"),
    )
    part = Transfer().upload_bytes

    def through(open_file: Callable[[], Any]) -> None:
        with open_file() as file:
            for start in range(0, len(data), 2 * part):
                file.write(data[start : start + 2 * part])

    yield "ours", lambda: through(lambda: store.open_writer("ours"))
    yield "s3fs, a file", lambda: through(lambda: fs.open(f"{path}/s3fs", "wb", block_size=part))
    arrow = _pyarrow(server)
    yield "pyarrow, a stream", lambda: through(lambda: arrow.open_output_stream(f"{path}/pyarrow"))
    if find_spec("obstore") is not None:
        import obstore

        other = _obstore(server, uri)
        yield (
            "obstore, a writer",
            lambda: through(
                lambda: obstore.open_writer(other, "obstore", buffer_size=part, max_concurrency=2)
            ),
        )


def _copy_table(server: SeaweedFS, params: int, runs: int, folder: str | None) -> Table:
    """From bucket to bucket: int8 by the inline engine with two workers, and two threads that copy with the same
    client."""
    source, nbytes = _upload_checkpoint(server, params, folder)
    jobs: dict[str, Callable[[str], object]] = {
        "quantize int8, uncompressed": partial(_quantize, server, source, "none"),
        "quantize int8, zstd": partial(_quantize, server, source, "zstd"),
        "copy of all bytes": partial(_copy, server, source, nbytes, nbytes),
        "copy that writes half, as int8 does": partial(_copy, server, source, nbytes, nbytes // 2),
    }
    found: dict[str, Measured] = {}
    for _ in range(runs):
        for name, job in jobs.items():
            with server.bucket("target") as target:
                found[name] = _better(found.get(name), partial(job, target))
    server.drop_bucket("source")
    rates = {name: nbytes / MIB / one.seconds for name, one in found.items()}
    ours, peers = [*jobs][:2], [*jobs][2:]
    rows = [
        Row(name, rates[name], _UNIT, peer, rates[peer], ratio_of(0.8)) for name in ours for peer in peers
    ]
    title = f"Bucket to bucket, {nbytes / 2e9:.3g} B parameters bfloat16, {WORKERS} workers"
    return Table(f"{title}, best of {runs}", tuple(rows))


def _upload_checkpoint(server: SeaweedFS, params: int, folder: str | None) -> tuple[str, int]:
    """Uploads a checkpoint. Returns its URI and size in bytes."""
    source = server.make_bucket("source")
    store = open_store(source, Storage(server.storage_options))
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".safetensors") as file:
        path = Path(file.name)
        write_checkpoint(path, params)
        with store.open_writer("model.safetensors") as writer:
            while piece := file.read(BLOCK_NBYTES):
                writer.write(piece)
        return f"{source}/model.safetensors", path.stat().st_size


def _quantize(server: SeaweedFS, source: str, compression: CompressionName, target: str) -> None:
    run = RunConfig(
        engine="inline",
        workers=WORKERS,
        compression=compression,
        storage_options=server.storage_options,
    )
    ArrowQuantizer(QuantizationConfig("int8"), run).quantize(source, target)


def _copy(server: SeaweedFS, source: str, nbytes: int, written: int, target: str) -> None:
    """Threads take blocks in turn: all bytes are read, and `written` of them are written, to one object per thread."""
    root, _, name = source.rpartition("/")

    def lane(k: int) -> None:
        storage = Storage(server.storage_options)
        store = open_store(root, storage)
        buffer = np.empty(BLOCK_NBYTES, np.uint8)
        with open_store(target, storage).open_writer(f"copy-{k}") as writer:
            for start in range(k * BLOCK_NBYTES, nbytes, WORKERS * BLOCK_NBYTES):
                view = buffer[: min(BLOCK_NBYTES, nbytes - start)]
                store.read_into(name, start, view)
                writer.write(view[: view.size * written // nbytes].data)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lane, range(WORKERS)))


def _rounds(contenders: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Measured]:
    """Measures contenders in turns, after a round that does not count, so that a busy machine slows all of them."""
    found: dict[str, Measured] = {}
    for call in contenders.values():
        call()
    for _ in range(runs):
        for name, call in contenders.items():
            found[name] = _better(found.get(name), call)
    return found


def _better(before: Measured | None, call: Callable[[], object]) -> Measured:
    cpu, start = _cpu_seconds(), time.perf_counter()
    call()
    now = Measured(time.perf_counter() - start, _cpu_seconds() - cpu)
    return now if before is None or now.seconds < before.seconds else before


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _both(what: str, found: Mapping[str, Measured], runs: int) -> Iterator[Table]:
    """Two tables: rates, and CPU seconds per GiB, of ours next to each of the others."""
    size = _OBJECT_NBYTES / MIB
    rates = {name: size / one.seconds for name, one in found.items()}
    cpu = {name: one.cpu_seconds / size * 1024 for name, one in found.items()}
    for title, values, unit in (
        (f"{what} {size:g} MiB", rates, _UNIT),
        (f"{what}: CPU of the client", cpu, "s/GiB"),
    ):
        ours = values["ours"]
        rows = [Row("ours", ours, unit, peer, value) for peer, value in values.items() if peer != "ours"]
        yield Table(f"{title}, {_THREADS} requests at a time, best of {runs}", tuple(rows))


def _s3fs(server: SeaweedFS) -> Any:
    import fsspec

    return fsspec.filesystem("s3", **server.storage_options)


def _pyarrow(server: SeaweedFS) -> Any:
    from pyarrow.fs import S3FileSystem

    return S3FileSystem(
        access_key=server.key,
        secret_key=server.secret,
        endpoint_override=server.endpoint_url.removeprefix("http://"),
        scheme="http",
        region="us-east-1",
    )


def _obstore(server: SeaweedFS, uri: str) -> Any:
    from obstore.store import S3Store

    return S3Store(
        uri.removeprefix("s3://"),
        access_key_id=server.key,
        secret_access_key=server.secret,
        endpoint=server.endpoint_url,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


@contextmanager
def _server(folder: str | None) -> Iterator[SeaweedFS]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        server = SeaweedFS(Path(place) / "seaweedfs")
        try:
            yield server
        finally:
            server.stop()
