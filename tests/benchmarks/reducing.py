"""The driver alone: all shards of a large plan are committed, and it has to read, reduce and publish them.

`python -m tests.benchmarks.reducing prepare|run FOLDER LAYERS` are the processes that this starts. `prepare` leaves a
target whose workers are done (parts are sparse files); `run` is the driver that finds it in that state.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.format.record import BlobRanges, RowRecord, StoredRange
from arrowquant_dist.format.row import RowHeader
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.plan import RowBlock, Shard, make_plan, plan_table
from arrowquant_dist.target.commit import write_commit
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target
from tests.benchmarks.table import Row, Table, at_most
from tests.benchmarks.timing import run_process

LAYERS = 200_000
_SHAPE = (2048, 3200)  # in bfloat16 13 MB; ten of them make a shard
_NBYTES = 2 * _SHAPE[0] * _SHAPE[1]
_RUN = RunConfig(engine="inline", shard_bytes=10 * (_NBYTES + 4096))
_PER_FILE = 1000


def tables(layers: int, folder: str | None) -> Iterator[Table]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run_process(_command("prepare", name, layers))
        process = run_process(_command("run", name, layers))
    found = json.loads(process.output)
    rows = (
        Row("wall, with report and manifest", found["seconds"], "s", target=at_most(30)),
        Row("CPU", found["cpu_seconds"], "s"),
        *(Row(f"of the wall, {phase}", seconds, "s") for phase, seconds in found["phases"].items()),
        Row("peak memory of the process", process.peak_nbytes / 1e9, "GB", target=at_most(1)),
    )
    yield Table(f"Driver that finds {found['shards']:,} shards of {layers:,} layers committed", rows)


def _command(what: str, folder: str, layers: int) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.reducing", what, folder, str(layers)]


def checkpoint(layers: int) -> Checkpoint:
    """A layer table without a checkpoint, which is enough because the driver only reads headers."""
    uris = [f"/models/m/model-{i:05d}.safetensors" for i in range(-(-layers // _PER_FILE))]
    table = tuple(
        Layer(
            f"model.layers.{i // 8}.mlp.experts.{i % 8}.down_proj.weight",
            _SHAPE,
            "bfloat16",
            uris[i // _PER_FILE],
            1000 + i % _PER_FILE * _NBYTES,
            _NBYTES,
        )
        for i in range(layers)
    )
    return Checkpoint(
        "/models/m", "safetensors", table, tuple(SourceFile(uri, 1 << 40, "v") for uri in uris), {}, ()
    )


def prepare(folder: Path, layers: int) -> dict[str, object]:
    plan = make_plan(checkpoint(layers), QuantizationConfig(), _RUN)
    target = Target.open(str(folder / "target"))
    target.start(plan_table(plan), target.look())
    for shard in plan.shards:
        receipt = _receipt(shard)
        part = folder / "target" / receipt.part
        part.parent.mkdir(parents=True)
        part.touch()
        os.truncate(part, receipt.nbytes)
        write_commit(target.store, receipt, plan.fingerprint, lambda: True)
    return {"shards": len(plan.shards)}


def run(folder: Path, layers: int) -> dict[str, object]:
    """Runs the driver, beginning with the layer table."""
    from arrowquant_dist.driver import quantize

    table = checkpoint(layers)
    started, cpu_started = time.perf_counter(), time.process_time()
    with (
        patch("arrowquant_dist.driver.run.open_checkpoint", lambda *_: table),
        patch("arrowquant_dist.driver.run.without_damaged", lambda _, receipts: receipts),  # parts are holes
    ):
        report = quantize("/models/m", str(folder / "target"), QuantizationConfig(), _RUN).report
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "phases": report.run.phases,
        "shards": report.totals.shards,
    }


def _receipt(shard: Shard) -> Receipt:
    chance = random.Random(shard.index)  # noqa: S311 - no secret
    attempt = f"{chance.getrandbits(64):016x}"
    rows = tuple(_record(block, i, chance) for i, block in enumerate(shard.blocks))
    return Receipt(
        shard=shard.index,
        attempt=attempt,
        part=f"weights/shard={shard.index:05d}/part-{attempt}.parquet",
        nbytes=sum(row.ranges.data.stored_nbytes + 20_000 for row in rows),
        hash=f"xxh3_128:{chance.getrandbits(128):032x}",
        rows=rows,
        seconds={"read": chance.random(), "quantize": chance.random(), "write": chance.random()},
        peak_memory_nbytes=500 << 20,
        worker=f"node-{shard.index % 64}/{shard.index % 256}",
        node=f"node-{shard.index % 64}",
        wall_seconds=3.0 + chance.random(),
        read_nbytes=shard.source_nbytes,
        written_nbytes=shard.source_nbytes // 2,
        retries=0,
    )


def _record(block: RowBlock, place: int, chance: random.Random) -> RowRecord:
    data = block.num_params
    at = place * (data + 20_000)
    errors = ErrorSums(data, 1e3 * chance.random(), 1e3 * chance.random(), chance.random(), chance.random())
    header = RowHeader(
        layer_name=block.layer.name,
        row_start=block.row_start,
        shape=block.shape,
        layer_shape=block.layer.shape,
        row_dims=1,
        dtype=block.layer.dtype,
        quant_type="int8",
        quant_axis=0,
        group_size=0,
        num_params=data,
        checksum=f"xxh3_128:{chance.getrandbits(128):032x}",
    )
    ranges = BlobRanges(
        data=StoredRange(at + 60, data - chance.randrange(1000), data),
        scales=StoredRange(at + data + 100, 8000, 8192),
        zero_points=StoredRange(at + data + 9000, 0, 0),
        chunk_digests=StoredRange(at + data + 9100, 112, 112),
        compression="zstd",
    )
    return RowRecord(header, ranges, block.source_nbytes, place, 0, "rtn", None, errors)


if __name__ == "__main__":
    what, folder, layers = sys.argv[1:]
    print(json.dumps({"prepare": prepare, "run": run}[what](Path(folder), int(layers))))
