"""What a worker may take: which settings and places change it, and by how much. Whether it is true is measured in
tests/integration/test_worker_memory.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.plan import make_plan, worker_memory_nbytes
from tests.plan.plan_sources import checkpoint, of_layers, raw_layers

MIB, GIB = 1 << 20, 1 << 30
INT8 = QuantizationConfig()
SHAPES = {"x": (1 << 16, 1 << 12)}  # bfloat16: 8 blocks of 64 MiB
LOCAL, S3, GCS = "/models/a.safetensors", "s3://bucket/a.safetensors", "gs://bucket/a.safetensors"


def worker(source: str, target: str = "/out", *, dtype: str = "bfloat16", **settings: Any) -> int:
    run = RunConfig(**{"compression": "none", "shard_bytes": GIB, **settings})
    layers = raw_layers([(name, shape, dtype) for name, shape in SHAPES.items()], source)
    made = make_plan(of_layers(layers), INT8, run)
    one = replace(made.shards[0], blocks=tuple(made.blocks))  # as in a model that is larger
    return worker_memory_nbytes(replace(made, shards=(one,)), target, run)


def test_it_follows_the_block_and_not_the_model() -> None:
    run = RunConfig()
    wide = {f"x{i}": (1 << 20, 1 << 12) for i in range(20)}
    one, twenty = (make_plan(checkpoint(shapes), INT8, run) for shapes in ({"x0": wide["x0"]}, wide))
    assert worker_memory_nbytes(twenty, "s3://b/t", run) == worker_memory_nbytes(one, "s3://b/t", run) < GIB
    assert worker(S3, block_bytes=MIB) < worker(S3, block_bytes=64 * MIB) < worker(S3, block_bytes=256 * MIB)


@pytest.mark.parametrize("transfer", [{"requests": 64, "range_bytes": 64 * MIB}, {"upload_bytes": 512 * MIB}])
def test_local_files_need_nothing_of_what_is_set_for_networks(transfer: dict[str, int]) -> None:
    assert worker(LOCAL, "/out", transfer=transfer) == worker(LOCAL, "/out")
    assert worker(LOCAL, "/out") < worker(LOCAL, "s3://bucket/out") < worker(S3, "s3://bucket/out")


@pytest.mark.parametrize("source", [S3, GCS])
def test_requests_in_flight_count(source: str) -> None:
    few = worker(source, transfer={"requests": 1, "range_bytes": 8 * MIB})
    many = worker(source, transfer={"requests": 64, "range_bytes": 8 * MIB})
    assert many - few >= 32 * MIB
    assert worker(LOCAL, "s3://b/out", transfer={"requests": 64}) == worker(LOCAL, "s3://b/out")


def test_ranges_that_a_client_makes_whole_count_as_far_as_they_are_asked_for() -> None:
    """64 of 64 MiB are 8 GiB in two copies, where blocks are so large that as many are read."""
    wide = {"requests": 64, "range_bytes": 64 * MIB}
    narrow = {"requests": 1, "range_bytes": MIB}
    for block in (64 * MIB, 512 * MIB):
        read = min(3 * block, 512 * MIB)  # all that there is of the model, or three batches of it
        more = worker(GCS, transfer=wide, block_bytes=block) - worker(GCS, transfer=narrow, block_bytes=block)
        assert more == 2 * read - 2 * MIB


def test_parts_of_an_upload_count_three_times_up_to_the_part_file() -> None:
    def uploads(nbytes: int) -> int:
        return worker(LOCAL, "s3://bucket/out", transfer={"upload_bytes": nbytes})

    assert uploads(64 * MIB) - uploads(16 * MIB) == 3 * 48 * MIB
    assert uploads(512 * MIB) - uploads(256 * MIB) == 0  # 256 MiB of codes are no more


def test_what_zstd_writes_to_counts_and_what_passes_the_page_cache() -> None:
    assert worker(LOCAL, compression="zstd") - worker(LOCAL) >= 32 * MIB  # a block's codes once more
    assert worker(LOCAL) - worker(LOCAL, direct_writes="never") == 48 * MIB


@pytest.mark.parametrize(("dtype", "itemsize"), [("float64", 8), ("float8_e5m2", 1), ("float8_e4m3fn", 1)])
def test_values_that_are_converted_before_they_are_quantized_count_twice(dtype: str, itemsize: int) -> None:
    values = 16 << 20
    plain = worker(LOCAL, dtype="float32", block_bytes=4 * values)
    more = worker(LOCAL, dtype=dtype, block_bytes=itemsize * values) - plain
    assert more == 4 * values + (itemsize - 4) * values


def test_rows_of_a_shard_count() -> None:
    run = RunConfig(compression="none")
    tiny = make_plan(checkpoint({f"x{i}": (16, 16) for i in range(50_000)}), INT8, run)
    few = make_plan(checkpoint({f"x{i}": (16, 16) for i in range(50)}), INT8, run)
    rows = max(len(shard.blocks) for shard in tiny.shards)
    assert rows > 1000
    assert worker_memory_nbytes(tiny, "/out", run) - worker_memory_nbytes(few, "/out", run) >= 4096 * rows


def test_a_datasets_stored_rows_count_whatever_is_read_of_them() -> None:
    run = RunConfig(block_bytes=8 * MIB)
    source = checkpoint(SHAPES)
    stored = replace(source, largest_row_nbytes=GIB)
    more = worker_memory_nbytes(make_plan(stored, INT8, run), "/out", run)
    assert more - worker_memory_nbytes(make_plan(source, INT8, run), "/out", run) == GIB
