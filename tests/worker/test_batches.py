"""Batches of a shard that are read ahead: in order, whole while they are worked on, and no more than allowed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist.arena import Allocate
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.plan import RowBlock, make_plan
from arrowquant_dist.plan.batches import Batch, batches_of
from arrowquant_dist.worker.batches import Blocks, ReadAhead, ReadInTurn
from arrowquant_dist.worker.clock import Clock
from tests.sources import save_checkpoint

BLOCK = 1 << 20
LAYERS = 40


class Counting(SourceReader):
    """Counts how many reads are at it at once, and how many are through."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.through = 0
        self.changed = threading.Condition()

    def read(self, slices: Sequence[tuple[Layer, int, int]], allocate: Allocate) -> list[np.ndarray]:  # type: ignore[override]
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.may_begin(slices))
        try:
            return super().read(slices, allocate)
        finally:
            with self.changed:
                self.now -= 1
                self.through += 1
                self.changed.notify_all()

    def may_begin(self, slices: Sequence[tuple[Layer, int, int]]) -> bool:
        return bool(slices)


class Held(Counting):
    """Reads no block before it is wanted. blocks: in batches of one."""

    def __init__(self, blocks: Sequence[RowBlock]) -> None:
        super().__init__()
        self._numbers = {block.layer.name: number for number, block in enumerate(blocks)}
        self._wanted = 0

    def may_begin(self, slices: Sequence[tuple[Layer, int, int]]) -> bool:
        return all(self._numbers[layer.name] <= self._wanted for layer, _, _ in slices)

    def work_through(self, blocks: Blocks, ahead: int) -> None:
        """Goes on from each block once so many reads wait behind it, or as many as there are left."""
        for _ in blocks:
            waiting = min(ahead, len(self._numbers) - 1 - self._wanted)
            with self.changed:
                self.changed.wait_for(lambda: self.now >= waiting)  # noqa: B023
                self._wanted += 1
                self.changed.notify_all()


class OneTooFew(Counting):
    def read(self, slices: Sequence[tuple[Layer, int, int]], allocate: Allocate) -> list[np.ndarray]:  # type: ignore[override]
        if any(layer.name == "layers.20.weight" for layer, _, _ in slices):
            raise OSError("gone")
        return super().read(slices, allocate)


def blocks_of(folder: Path, weights: dict[str, torch.Tensor]) -> list[RowBlock]:
    checkpoint = open_checkpoint(save_checkpoint(folder, weights))
    run = RunConfig(block_bytes=BLOCK, shard_bytes=1 << 30)
    return list(make_plan(checkpoint, QuantizationConfig(), run).blocks)


def in_batches_of_one(blocks: Sequence[RowBlock]) -> list[Batch]:
    return [[block] for block in blocks]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    sizes = [64 + 8 * (i % 7) for i in range(LAYERS)]
    return {f"layers.{i}.weight": torch.randn(rows, 256, generator=generator) for i, rows in enumerate(sizes)}


@pytest.mark.parametrize("read", [ReadAhead, ReadInTurn])
def test_each_block_has_its_own_values_until_the_next_is_asked_for(
    tmp_path: Path, weights: dict[str, torch.Tensor], read: type[ReadAhead] | type[ReadInTurn]
) -> None:
    blocks, reader = blocks_of(tmp_path, weights), Counting()
    ahead = 2 if read is ReadAhead else 0
    seen: list[RowBlock] = []
    for block, values in read(reader)(in_batches_of_one(blocks), Clock()):
        enough = min(len(seen) + 1 + ahead, LAYERS)
        with reader.changed:
            reader.changed.wait_for(lambda: reader.through >= enough)  # noqa: B023
        start, stop = block.value_range
        expected = weights[block.layer.name].reshape(-1)[start:stop].numpy()
        assert np.array_equal(values.view(np.float32), expected)
        seen.append(block)
    assert seen == blocks


def test_two_batches_are_on_their_way_while_one_is_worked_on(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    blocks = blocks_of(tmp_path, weights)
    reader = Held(blocks)
    reader.work_through(ReadAhead(reader)(in_batches_of_one(blocks), Clock()), ahead=2)
    assert reader.through == LAYERS
    assert reader.most == 2


def test_one_is_where_a_layer_takes_more_than_its_own_memory(tmp_path: Path) -> None:
    """A dataset's rows are decoded: what is read of them is not where they end up."""
    from arrowquant_dist import ArrowQuantizer

    weights = {f"layers.{i}.weight": torch.randn(64, 256) for i in range(8)}
    source = save_checkpoint(tmp_path / "source", weights)
    ArrowQuantizer(QuantizationConfig()).quantize(source, str(tmp_path / "dataset"))
    checkpoint = open_checkpoint(str(tmp_path / "dataset"))
    blocks = list(make_plan(checkpoint, QuantizationConfig("int4"), RunConfig()).blocks)
    reader = Held(blocks)
    reader.work_through(ReadAhead(reader)(in_batches_of_one(blocks), Clock()), 1)
    assert reader.through == len(blocks)
    assert reader.most == 1


def test_what_fails_is_raised_in_its_turn_and_no_thread_stays(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    blocks = blocks_of(tmp_path, weights)
    seen: list[str] = []

    def work() -> None:
        seen.extend(
            block.layer.name for block, _ in ReadAhead(OneTooFew())(in_batches_of_one(blocks), Clock())
        )

    with pytest.raises(OSError, match="gone"):
        work()
    assert seen == [block.layer.name for block in blocks][: len(seen)]
    assert "layers.20.weight" not in seen
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_whoever_stops_early_leaves_no_thread(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    batches = batches_of(blocks_of(tmp_path, weights))
    blocks = ReadAhead(Counting())(batches, Clock())
    next(blocks)
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_nothing_is_nothing() -> None:
    assert list(ReadAhead(Counting())([], Clock())) == []
