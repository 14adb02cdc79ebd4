"""What a method needs besides the values comes with it from the config's URI to the dataset, and counts everywhere."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig, quantize_tensor
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.driver import plan_only, quantize
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig, NotFound, TargetConflict
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.method_names import METHODS
from arrowquant_dist.methods.registry import BY_GROUP
from arrowquant_dist.plan import (
    Plan,
    differences,
    make_plan,
    open_side_inputs,
    plan_from_table,
    plan_table,
    worker_memory_nbytes,
)
from arrowquant_dist.plan.memory import REMOTE_NBYTES
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.target.target import Target
from arrowquant_dist.worker.shard import ShardWorker, WorkerContext
from arrowquant_dist.worker.sinks.v2 import V2Parts
from tests.datasets import weights_of
from tests.methods.masked import WORK_NBYTES, Masked
from tests.sources import random_weights, save_checkpoint
from tests.target.drivers import start

pytestmark = pytest.mark.usefixtures("ticks")
ROWS, COLUMNS = 256, 128
RUN = RunConfig(block_bytes=64 << 10)  # two row blocks a layer
LAYERS = ("layers.0.weight", "layers.1.weight")


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> Masked:
    """The method, registered."""
    method = Masked()
    monkeypatch.setitem(METHODS, "masked", "hessians")
    monkeypatch.setitem(BY_GROUP, "masked", method)
    return method


@pytest.fixture
def source(tmp_path: Path) -> str:
    return save_checkpoint(tmp_path / "source", random_weights(2, ROWS, COLUMNS, torch.float32))


def save_side(folder: Path, zeros: Mapping[str, int]) -> str:
    """A weight of 1 for each column, but for the first `zeros` of a layer."""
    tensors = {f"{layer}.columns": torch.ones(COLUMNS) for layer in zeros}
    for layer, count in zeros.items():
        tensors[f"{layer}.columns"][:count] = 0.0
    return save_checkpoint(folder, tensors)


@pytest.fixture
def config(tmp_path: Path, masked: Masked) -> QuantizationConfig:
    uri = save_side(tmp_path / "side", {LAYERS[0]: 3, LAYERS[1]: 5})
    return QuantizationConfig.from_dict({"method": "masked", "hessians": uri})


def plan_of(source: str, config: QuantizationConfig, run: RunConfig = RUN) -> Plan:
    side_inputs = open_side_inputs(config, run.source_storage)
    return make_plan(open_checkpoint(source), config, run, side_inputs)


def test_it_decides_the_codes(
    source: str, config: QuantizationConfig, masked: Masked, tmp_path: Path
) -> None:
    target = str(tmp_path / "out")
    quantize(source, target, config, RUN)
    with WeightLoader(target) as loader:
        for layer, zeros in zip(LAYERS, (3, 5), strict=True):
            assert (loader[layer][:, :zeros] == 0).all()
            assert (loader[layer][:, zeros:] != 0).any(dim=0).all()
    assert sorted(masked.rows) == [0, 0, 128, 128]
    assert quantize(source, target, config, RUN).already_finished


def test_it_is_prepared_once_for_the_row_blocks_of_a_layer(
    source: str, config: QuantizationConfig, masked: Masked, tmp_path: Path
) -> None:
    quantize(source, str(tmp_path / "out"), config, RunConfig(block_bytes=64 << 10, workers=1))
    assert masked.side_input.prepared == 2


def test_another_side_input_is_another_plan_and_is_refused(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    target = str(tmp_path / "out")
    before = plan_of(source, config)
    quantize(source, target, config, RUN)
    save_side(tmp_path / "side", {LAYERS[0]: 3, LAYERS[1]: 6})
    now = plan_of(source, config)
    assert before.fingerprint != now.fingerprint
    changed = f"side input changed: {tmp_path}/side/model.safetensors (mtime, ctime, inode)"
    assert differences(before, now) == [changed]
    with pytest.raises(TargetConflict, match=re.escape(changed)):
        quantize(source, target, config, RUN)


def test_tensors_in_other_places_of_equal_files_are_another_plan(
    source: str, config: QuantizationConfig
) -> None:
    plan = plan_of(source, config)
    found = open_side_inputs(config, RUN.source_storage)
    other = {"hessians": _swapped(found["hessians"])}
    swapped = make_plan(open_checkpoint(source), config, RUN, other)
    assert plan.side_inputs == swapped.side_inputs
    assert plan.fingerprint != swapped.fingerprint


def test_the_plan_at_the_target_has_it(source: str, config: QuantizationConfig) -> None:
    plan = plan_of(source, config)
    assert plan.side_inputs["hessians"]["format"] == "safetensors"
    assert [len(block.side_tensors) for block in plan.blocks if block.spec.is_quantized] == [1] * 4
    assert plan_from_table(plan_table(plan)) == plan


def test_a_layer_without_it_is_named_before_anything_is_written(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    save_side(tmp_path / "side", {LAYERS[0]: 3})
    for run in (quantize, plan_only):
        with pytest.raises(
            InvalidConfig, match=r"hessians has no tensor 'layers\.1\.weight\.columns'"
        ) as raised:
            run(source, str(tmp_path / "out"), config, RUN)
        assert raised.value.layer == LAYERS[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [torch.ones(COLUMNS + 1), torch.ones(COLUMNS, dtype=torch.float16)])
def test_a_tensor_of_another_form_is_refused(
    source: str, config: QuantizationConfig, tmp_path: Path, wrong: torch.Tensor
) -> None:
    save_checkpoint(tmp_path / "side", {f"{layer}.columns": wrong.clone() for layer in LAYERS})
    with pytest.raises(InvalidConfig, match=r"not as plain float32 of \[128\]"):
        plan_of(source, config)


def test_a_part_that_a_method_can_do_without_is_given_where_it_is_there(
    source: str, config: QuantizationConfig, masked: Masked, tmp_path: Path
) -> None:
    more = torch.ones(2, COLUMNS)
    more[1, 7] = 0.0
    tensors = {f"{layer}.columns": torch.ones(COLUMNS) for layer in LAYERS}
    save_checkpoint(tmp_path / "side", {**tensors, f"{LAYERS[0]}.more": more})
    quantize(source, str(tmp_path / "out"), config, RunConfig(workers=1))
    with WeightLoader(str(tmp_path / "out")) as loader:
        assert (loader[LAYERS[0]][:, 7] == 0).all()
        assert (loader[LAYERS[1]][:, 7] != 0).any()
    assert masked.side_input.parts == {"columns", "more"}


def test_a_part_that_it_can_do_without_has_its_shape_too(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    tensors = {f"{layer}.columns": torch.ones(COLUMNS) for layer in LAYERS}
    save_checkpoint(tmp_path / "side", {**tensors, f"{LAYERS[1]}.more": torch.ones(1, COLUMNS)})
    with pytest.raises(InvalidConfig, match=r"'layers\.1\.weight\.more' as \[1, 128\] of float32") as raised:
        plan_of(source, config)
    assert raised.value.layer == LAYERS[1]


def test_a_layer_of_which_nothing_is_known_gets_the_other_method_and_a_note(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    side = {f"{LAYERS[0]}.columns": torch.ones(COLUMNS), f"{LAYERS[1]}.unknown": torch.zeros(0)}
    save_checkpoint(tmp_path / "side", side)
    plan = plan_of(source, config)
    methods = {block.layer.name: block.spec.method for block in plan.blocks if block.spec.is_quantized}
    assert methods == {LAYERS[0]: "masked", LAYERS[1]: "rtn"}
    assert plan.notes == (
        "rtn instead of masked for 1 layer, for which hessians has only 'unknown' and no statistics of inputs: "
        f"{LAYERS[1]}",
    )
    assert plan_from_table(plan_table(plan)) == plan


def test_one_that_is_not_finished_is_refused(
    source: str, config: QuantizationConfig, masked: Masked, tmp_path: Path
) -> None:
    masked.side_input.finished_by = "done.json"
    with pytest.raises(InvalidConfig, match=r"hessians has no done\.json, which is written last"):
        quantize(source, str(tmp_path / "out"), config, RUN)
    (tmp_path / "side" / "done.json").write_text("{}")
    quantize(source, str(tmp_path / "out"), config, RUN)


def test_a_layer_whose_override_takes_another_method_needs_none(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    save_side(tmp_path / "side", {LAYERS[0]: 3})
    plan = plan_of(source, config.replace(overrides=[LayerOverride(LAYERS[1], method="rtn")]))
    with_any = {block.layer.name for block in plan.blocks if block.side_tensors}
    assert with_any == {LAYERS[0]}


def test_a_method_without_its_side_input_s_uri_is_refused(masked: Masked) -> None:
    with pytest.raises(InvalidConfig, match="method: masked needs hessians; say where they are"):
        QuantizationConfig.from_dict({"method": "masked"})
    with pytest.raises(InvalidConfig, match=r"overrides\[0\].method: masked needs hessians"):
        QuantizationConfig(overrides=[LayerOverride("a", method="masked")])  # type: ignore[arg-type]


def test_a_scale_for_the_whole_tensor_is_not_among_its_own(source: str, config: QuantizationConfig) -> None:
    with pytest.raises(InvalidConfig, match="masked has no scale for a whole tensor") as raised:
        plan_of(source, config.replace(per_channel=False, group_size=0))
    assert raised.value.layer == LAYERS[0]


def test_a_uri_where_nothing_is_ends_the_run(source: str, config: QuantizationConfig, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        quantize(source, str(tmp_path / "out"), config.replace(hessians=str(tmp_path / "none")), RUN)


def test_a_side_input_that_changes_after_the_plan_is_noticed(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    plan, context = _started(source, config, tmp_path / "out")
    save_side(tmp_path / "side", {LAYERS[0]: 1, LAYERS[1]: 1})
    with pytest.raises(InvalidCheckpoint, match="changed since the plan was made"):
        _run_all(plan, context)


def test_a_worker_elsewhere_makes_the_same_of_what_it_is_sent(
    source: str, config: QuantizationConfig, tmp_path: Path
) -> None:
    quantize(source, str(tmp_path / "here"), config, RUN)
    plan, context = _started(source, config, tmp_path / "there")
    _run_all(*pickle.loads(pickle.dumps((plan, context))))  # noqa: S301
    quantize(source, str(tmp_path / "there"), config, RUN)
    assert weights_of(tmp_path / "there") == weights_of(tmp_path / "here")


def test_a_worker_s_memory_has_room_for_it(source: str, config: QuantizationConfig) -> None:
    with_it, without = plan_of(source, config), plan_of(source, config.replace(method="rtn"))
    more = worker_memory_nbytes(with_it, "/out", RUN) - worker_memory_nbytes(without, "/out", RUN)
    assert more == WORK_NBYTES * 128 + 1


def test_a_side_input_on_an_object_store_counts_its_requests_too(
    source: str, config: QuantizationConfig
) -> None:
    plan = plan_of(source, config)
    file = {"uri": "s3://bucket/side/model.safetensors", "nbytes": 1, "version": "v"}
    remote = replace(plan, side_inputs={"hessians": {**plan.side_inputs["hessians"], "files": [file]}})
    more = worker_memory_nbytes(remote, "/out", RUN) - worker_memory_nbytes(plan, "/out", RUN)
    assert more == REMOTE_NBYTES + WORK_NBYTES * 128 + 1


def test_what_no_method_needs_costs_no_request_and_no_fingerprint(
    source: str, masked: Masked, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plan_of(source, QuantizationConfig())
    opened: list[str] = []
    monkeypatch.setattr("arrowquant_dist.plan.side_inputs.open_checkpoint", opened.append)
    unused = plan_of(source, QuantizationConfig(hessians="/nowhere"))
    assert not opened
    assert unused.fingerprint == plain.fingerprint
    assert unused.side_inputs == {}


def test_a_target_that_holds_it_is_refused(source: str, masked: Masked, tmp_path: Path) -> None:
    target = tmp_path / "out"
    side = save_side(target / "side", {LAYERS[0]: 3, LAYERS[1]: 5})
    config = QuantizationConfig.from_dict({"method": "masked", "hessians": side})
    with pytest.raises(InvalidConfig, match="the target holds the source itself"):
        quantize(source, str(target), config, RUN.replace(overwrite=True))
    assert LocalStore(side).exists("model.safetensors")


def test_a_weight_in_memory_has_none(config: QuantizationConfig) -> None:
    with pytest.raises(InvalidConfig, match="masked needs hessians, which only checkpoints have"):
        quantize_tensor(torch.ones(4, 4), config)


def _swapped(side_input: Checkpoint) -> Checkpoint:
    """The same files with two tensors' names the other way round."""
    first, second = side_input.layers
    return replace(side_input, layers=(replace(first, name=second.name), replace(second, name=first.name)))


def _started(source: str, config: QuantizationConfig, target: Path) -> tuple[Plan, WorkerContext]:
    checkpoint, side_inputs = open_checkpoint(source), open_side_inputs(config, RUN.source_storage)
    plan = make_plan(checkpoint, config, RUN, side_inputs)
    start(Target.open(str(target)), plan_table(plan))
    files = side_inputs["hessians"].files
    sink = V2Parts(plan.compression)
    return plan, WorkerContext(str(target), plan.fingerprint, sink, checkpoint.files, side_files=files)


def _run_all(plan: Plan, context: WorkerContext) -> None:
    worker = ShardWorker(context)
    for shard in plan.shards:
        worker.run(shard, lambda _: None, lambda: False)
