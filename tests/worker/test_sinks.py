"""The rules that every sink keeps, and that a run with another sink resumes and commits as `quantize` does."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load_file

from arrowquant_dist import WeightLoader
from arrowquant_dist.driver import quantize
from arrowquant_dist.format.row import RowHeader
from arrowquant_dist.plan import RowBlock, Shard
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.layout import Listing
from arrowquant_dist.tensor import quantize_values
from arrowquant_dist.worker.shard import ShardWorker
from arrowquant_dist.worker.sink import Part, SinkSpec
from arrowquant_dist.worker.sinks.v2 import V2Parts
from tests.conftest import CHECKOUT
from tests.sources import random_weights, save_checkpoint
from tests.worker.export import CONFIG, RUN, context_of, export, plan_of
from tests.worker.safetensors_sink import SafetensorsParts

WEIGHTS = random_weights(5, 256, 256, torch.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("source"), WEIGHTS)


@pytest.fixture(params=[V2Parts("none"), V2Parts("zstd"), SafetensorsParts()], ids=repr)
def sink(request: pytest.FixtureRequest) -> SinkSpec:
    return cast("SinkSpec", request.param)


def fill(part: Part, shard: Shard) -> None:
    for block in shard.blocks:
        values = WEIGHTS[block.layer.name].numpy().reshape(-1)[slice(*block.value_range)].view(np.uint8)
        part.add(block, quantize_values(values, block.shape, block.layer.dtype, block.spec))


def test_what_says_which_sink_is_small_and_travels(sink: SinkSpec) -> None:
    data = pickle.dumps(sink)
    assert len(data) < 200
    assert pickle.loads(data) == sink  # noqa: S301


def test_a_part_says_what_its_object_is_and_has_a_row_for_each_block(
    source: str, tmp_path: Path, sink: SinkSpec
) -> None:
    opened, store = sink.open(open_store(str(tmp_path))), LocalStore(str(tmp_path))
    for shard in plan_of(source).shards:
        part = opened.open_part(shard, "a")
        fill(part, shard)
        written = part.close()
        data = store.read(written.path)
        assert (written.nbytes, written.hash) == (len(data), f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}")
        assert [place_of(record.header) for record in written.records] == [*map(block_of, shard.blocks)]
        assert [record.source_nbytes for record in written.records] == [
            block.source_nbytes for block in shard.blocks
        ]
        ends = [value.offset + value.stored_nbytes for record in written.records for value in record.ranges]
        assert max(ends) <= len(data)


def place_of(header: RowHeader) -> tuple[object, ...]:
    return header.layer_name, header.row_start, header.shape, header.layer_shape, header.row_dims


def block_of(block: RowBlock) -> tuple[object, ...]:
    return block.layer.name, block.row_start, block.shape, block.layer.shape, block.spec.row_dims


def test_two_attempts_write_the_same_in_two_places_and_either_is_found_by_its_name(
    source: str, tmp_path: Path, sink: SinkSpec
) -> None:
    store = LocalStore(str(tmp_path))
    opened, shard = sink.open(store), plan_of(source).shards[0]
    parts = [opened.open_part(shard, attempt) for attempt in ("a", "b")]
    for part in parts:
        fill(part, shard)
    first, second = (part.close() for part in parts)
    assert first.path != second.path
    assert store.read(first.path) == store.read(second.path)
    assert Listing.of(store).leftovers([first.path]) == [second.path]
    assert {*Listing.of(store).ours} == {first.path, second.path}


@pytest.mark.parametrize("blocks", [0, 2])
def test_an_aborted_part_leaves_nothing(source: str, tmp_path: Path, sink: SinkSpec, blocks: int) -> None:
    shard = max(plan_of(source).shards, key=lambda shard: len(shard.blocks))
    part = sink.open(LocalStore(str(tmp_path))).open_part(shard, "a")
    fill(part, Shard(shard.index, shard.blocks[:blocks]))
    part.abort()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_to_abort_a_closed_part_does_nothing(source: str, tmp_path: Path, sink: SinkSpec) -> None:
    shard = plan_of(source).shards[0]
    part = sink.open(LocalStore(str(tmp_path))).open_part(shard, "a")
    fill(part, shard)
    written = part.close()
    part.abort()
    assert (tmp_path / written.path).stat().st_size == written.nbytes


def tensors_of(target: Path) -> dict[str, torch.Tensor]:
    """Of all files, read by the safetensors package."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted((target / "weights").rglob("*.safetensors")):
        tensors = load_file(file)
        assert not found.keys() & tensors.keys(), "a tensor is there twice"
        found |= tensors
    return found


def expected_tensors(source: str, target: Path) -> dict[str, torch.Tensor]:
    """What a V2 dataset of the same source and config decodes to."""
    quantize(source, str(target), CONFIG, RUN)
    with WeightLoader(str(target)) as loader:
        return {name: loader[name].clone() for name in WEIGHTS}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_another_sink_runs_with_the_same_engine_and_is_published(source: str, tmp_path: Path) -> None:
    driver = export(source, str(tmp_path / "out"), SafetensorsParts())
    published = driver.publish()
    assert published.is_ours
    assert len(published.manifest.parts) == len(plan_of(source).shards) > 3
    assert {part.path for part in published.manifest.parts} == files_of(tmp_path / "out")
    assert same(tensors_of(tmp_path / "out"), expected_tensors(source, tmp_path / "v2"))


def files_of(target: Path) -> set[str]:
    return {f.relative_to(target).as_posix() for f in (target / "weights").rglob("*") if f.is_file()}


@pytest.mark.parametrize("death", [("block", "7"), ("part", "3")], ids="-".join)
def test_a_run_with_another_sink_that_is_killed_goes_on_and_has_each_shard_once(
    source: str, tmp_path: Path, death: tuple[str, str]
) -> None:
    target = tmp_path / "out"
    died = subprocess.run(
        [sys.executable, "-m", "tests.worker.export", source, str(target), *death], cwd=CHECKOUT, check=False
    )
    assert died.returncode == 9
    commits = {path: path.read_bytes() for path in (target / "run/commits").iterdir()}
    assert 0 < len(commits) < len(plan_of(source).shards)
    assert len(files_of(target)) > len(commits)  # what it was at
    driver = export(source, str(target), SafetensorsParts())
    assert {path: path.read_bytes() for path in commits} == commits  # these were not done again
    assert [*driver.receipts()] == [shard.index for shard in plan_of(source).shards]
    published = driver.publish()
    assert {part.path for part in published.manifest.parts} == files_of(target)
    assert same(tensors_of(target), expected_tensors(source, tmp_path / "v2"))


def test_of_two_attempts_of_another_sink_one_counts_and_the_others_object_goes(
    source: str, tmp_path: Path
) -> None:
    driver = export(source, str(tmp_path / "out"), SafetensorsParts())
    before = driver.receipts()
    late = ShardWorker(context_of(source, str(tmp_path / "out"), SafetensorsParts()))
    for shard in plan_of(source).shards:
        assert late.run(shard, lambda _: None, lambda: False) == before[shard.index]
    assert driver.receipts() == before
    assert files_of(tmp_path / "out") == {receipt.part for receipt in before.values()}
