from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.errors import Interrupted, InvalidCheckpoint, UnquantizableWeights
from arrowquant_dist.method_names import MethodName
from arrowquant_dist.plan import Plan, RowBlock, make_plan, plan_table
from arrowquant_dist.target.target import Target
from arrowquant_dist.worker.shard import ShardWorker, WorkerContext
from arrowquant_dist.worker.sinks.v2 import V2Parts
from tests.sources import random_weights, save_checkpoint
from tests.target.drivers import start

BLOCK = 64 << 10


def _started(
    source: str, target: Path, config: QuantizationConfig, run: RunConfig
) -> tuple[Plan, WorkerContext]:
    """A plan at its target, and the context for its workers."""
    checkpoint = open_checkpoint(source)
    plan = make_plan(checkpoint, config, run)
    start(Target.open(str(target)), plan_table(plan))
    return plan, WorkerContext(str(target), plan.fingerprint, V2Parts(plan.compression), checkpoint.files)


def _ignore(_block: RowBlock) -> None:
    """on_block of a caller that doesn't care."""


def _never() -> bool:
    return False


@pytest.fixture
def source(tmp_path: Path) -> str:
    return save_checkpoint(tmp_path / "source", random_weights(3, 256, 256, torch.float32))


def test_a_shard_becomes_one_committed_part_with_a_row_for_each_block(source: str, tmp_path: Path) -> None:
    run = RunConfig(block_bytes=BLOCK, shard_bytes=1 << 30)
    plan, context = _started(source, tmp_path / "out", QuantizationConfig(), run)
    done: list[RowBlock] = []
    for shard in plan.shards:
        receipt = ShardWorker(context).run(shard, done.append, _never)
        assert [(r.header.layer_name, r.header.row_start) for r in receipt.rows] == [
            (b.layer.name, b.row_start) for b in shard.blocks
        ]
        assert (tmp_path / "out" / receipt.part).stat().st_size == receipt.nbytes
        assert set(receipt.seconds) == {"read", "quantize", "write", "compile"}
    assert done == list(plan.blocks)
    assert len(done) > 6  # the matrices were cut
    driver = start(Target.open(str(tmp_path / "out")), plan_table(plan))
    assert set(driver.receipts()) == {shard.index for shard in plan.shards}


def test_a_receipt_says_when_it_was_begun_by_which_worker_and_with_what_memory(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arrowquant_dist.worker.clock.time.time", lambda: 1767323045.6789)
    plan, context = _started(source, tmp_path / "out", QuantizationConfig(), RunConfig(shard_bytes=BLOCK))
    one, other = ShardWorker(context), ShardWorker(context)
    first, second, third = (
        worker.run(shard, _ignore, _never)
        for worker, shard in zip((one, other, one), plan.shards, strict=False)
    )
    assert first.started_at == 1767323045.679
    assert first.thread == third.thread != second.thread
    assert first.worker == second.worker
    assert first.resident_nbytes is not None
    assert 0 < first.resident_nbytes <= first.peak_memory_nbytes


def test_where_the_system_does_not_say_what_is_resident_neither_does_a_receipt(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_name: str) -> int:
        raise FileNotFoundError("/proc/self/status")

    monkeypatch.setattr("arrowquant_dist.machine.status_nbytes", unknown)
    plan, context = _started(source, tmp_path / "out", QuantizationConfig(), RunConfig())
    receipt = ShardWorker(context).run(plan.shards[0], _ignore, _never)
    assert receipt.resident_nbytes is None
    assert receipt.peak_memory_nbytes > 0


@pytest.mark.parametrize("method", ["rtn", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_tensor_has_one_scale_however_it_is_cut(
    source: str,
    tmp_path: Path,
    method: MethodName,
    symmetric: bool,  # noqa: FBT001
) -> None:
    config = QuantizationConfig("int4", per_channel=False, group_size=0, symmetric=symmetric, method=method)
    scales: dict[str, set[object]] = {}
    for name, block_bytes in (("cut", BLOCK), ("whole", 64 << 20)):
        plan, context = _started(source, tmp_path / name, config, RunConfig(block_bytes=block_bytes))
        receipts = [ShardWorker(context).run(shard, _ignore, _never) for shard in plan.shards]
        store = Target.open(str(tmp_path / name)).store
        codes: dict[str, bytes] = {}
        for receipt in receipts:
            for row in pq.read_table(store.open_reader(receipt.part)).to_pylist():
                if row["quant_type"] == "int4":
                    scales.setdefault(row["layer_name"], set()).add((row["scales"], row["zero_points"]))
                    codes[row["layer_name"]] = codes.get(row["layer_name"], b"") + row["data"]
        scales.setdefault("codes", set()).add(tuple(sorted(codes.items())))
    assert all(len(found) == 1 for found in scales.values()), scales.keys()


def test_a_stopped_shard_leaves_no_part_and_no_commit(source: str, tmp_path: Path) -> None:
    plan, context = _started(source, tmp_path / "out", QuantizationConfig(), RunConfig(block_bytes=BLOCK))
    done: list[RowBlock] = []
    with pytest.raises(Interrupted, match="run the same command again to resume"):
        ShardWorker(context).run(plan.shards[0], done.append, lambda: len(done) == 2)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert not start(Target.open(str(tmp_path / "out")), plan_table(plan)).receipts()


def test_a_nan_names_its_layer_and_its_index_in_the_whole_layer(tmp_path: Path) -> None:
    weights = random_weights(2, 256, 256, torch.bfloat16)
    weights["layers.1.weight"][200, 7] = torch.nan
    source = save_checkpoint(tmp_path / "source", weights)
    plan, context = _started(source, tmp_path / "out", QuantizationConfig(), RunConfig(block_bytes=BLOCK))
    shard = next(
        s for s in plan.shards for b in s.blocks if b.layer.name == "layers.1.weight" and b.row_start > 0
    )
    with pytest.raises(UnquantizableWeights, match=r"NaN at index \[200, 7\]") as raised:
        ShardWorker(context).run(shard, _ignore, _never)
    assert raised.value.layer == "layers.1.weight"
    assert not list((tmp_path / "out").rglob("part-*.parquet"))


@pytest.mark.parametrize("group_size", [0, 128])
def test_a_layer_with_nan_is_kept_byte_for_byte_where_the_config_says_so(
    tmp_path: Path, group_size: int
) -> None:
    weights = random_weights(1, 64, 256, torch.float32)
    weights["layers.0.weight"][3, 5] = torch.inf
    weights["layers.0.norm.weight"][9] = torch.nan
    source = save_checkpoint(tmp_path / "source", weights)
    config = QuantizationConfig("int8", per_channel=False, group_size=group_size, non_finite="keep")
    plan, context = _started(source, tmp_path / "out", config, RunConfig())
    rows = [row for shard in plan.shards for row in ShardWorker(context).run(shard, _ignore, _never).rows]
    assert {row.header.layer_name: row.header.quant_type for row in rows} == dict.fromkeys(weights, "none")
    matrix = next(row for row in rows if row.header.layer_name == "layers.0.weight")
    assert matrix.kept_reason == "holds NaN or inf (non_finite: keep)"
    assert matrix.ranges.data.nbytes == weights["layers.0.weight"].nbytes


def test_a_second_attempt_loses_and_returns_the_receipt_that_counts(source: str, tmp_path: Path) -> None:
    plan, context = _started(source, tmp_path / "out", QuantizationConfig(), RunConfig())
    first = ShardWorker(context).run(plan.shards[0], _ignore, _never)
    second = ShardWorker(context).run(plan.shards[0], _ignore, _never)
    assert second.attempt == first.attempt
    assert [path.name for path in (tmp_path / "out/weights").rglob("*.parquet")] == [Path(first.part).name]


def test_a_source_that_changed_since_the_plan_is_refused(source: str, tmp_path: Path) -> None:
    plan, context = _started(source, tmp_path / "out", QuantizationConfig(), RunConfig())
    save_checkpoint(Path(source), random_weights(3, 256, 257, torch.float32))
    with pytest.raises(InvalidCheckpoint, match="changed"):
        ShardWorker(context).run(plan.shards[0], _ignore, _never)


def test_metrics_of_a_receipt_are_those_of_the_decoded_weights(source: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from arrowquant_dist import WeightLoader
    from arrowquant_dist.driver import quantize

    report = quantize(
        source,
        str(tmp_path / "out"),
        QuantizationConfig("int2", per_channel=False, group_size=128, symmetric=False),
        RunConfig(),
    ).report
    original = load_file(Path(source) / "model.safetensors")
    worst = {layer.layer_name: layer for layer in report.worst_layers}
    with WeightLoader(str(tmp_path / "out")) as loader:
        for name, layer in worst.items():
            x, d = original[name].double().flatten(), loader[name].double().flatten()
            cosine = float(x @ d / (x.norm() * d.norm()))
            assert np.isclose(layer.cosine, cosine, atol=1e-6)
    assert worst
