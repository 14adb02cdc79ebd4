"""Steps follow from the available memory, and change no byte of the result."""

from __future__ import annotations

import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from arrowquant_dist import QuantizationConfig, RunConfig, quantize_tensor
from arrowquant_dist.arena import fresh
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.dataset.assemble import Assembler
from arrowquant_dist.dataset.bare import ReadCounter
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.dataset.prefetch import Budget, load_now
from arrowquant_dist.errors import InvalidCheckpoint, MemoryBudgetExceeded
from arrowquant_dist.export import ExportOptions, export_dataset, plan_export
from arrowquant_dist.export.compressed_tensors.packers import PackedWeight
from arrowquant_dist.export.files import OutputFile
from arrowquant_dist.export.gguf.packers import FloatValues
from arrowquant_dist.export.reading import StepReader
from arrowquant_dist.export.steps import StepCutter, region_of
from arrowquant_dist.export.tensors import LayerExport
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.tensor import QuantizedTensor
from tests.export.codes_format import CodesFormat
from tests.export.datasets import loaded, made_dataset
from tests.sources import random_weights, save_checkpoint

RUN = RunConfig(engine="inline", workers=2)
TENSORS = {**random_weights(2, 200, 300, torch.float32), "odd.weight": torch.randn(7, 5)}
BY_ROW = QuantizationConfig("int4")


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arrowquant_dist.export.steps.RUN_NBYTES", 20_000)


@pytest.fixture(scope="module", params=["zstd", "none"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = RunConfig(block_bytes=64 << 10, compression=request.param)
    return made_dataset(tmp_path_factory.mktemp("steps"), TENSORS, BY_ROW, run)


def exported(
    dataset: str, out: Path, form: CodesFormat, monkeypatch: pytest.MonkeyPatch, source: str | None = None
) -> dict[str, np.ndarray]:
    monkeypatch.setattr("arrowquant_dist.export.run.format_of", lambda _: form)
    export_dataset(dataset, str(out), ExportOptions(source=source), RUN)
    return dict(load_file(out / "model.safetensors"))


def expected(dataset: str) -> dict[str, np.ndarray]:
    """Codes and scales as the dataset has them."""
    opened, found = Dataset.open(dataset), {}
    for name, layer in opened.layers.items():
        if len(layer.shape) == 2:
            blocks = [opened.read_block(block) for block in layer.blocks]
            found[f"{name}.codes"] = np.concatenate([b.codes for b in blocks]).reshape(layer.rows, -1)
            found[f"{name}.scales"] = np.concatenate([b.scales for b in blocks]).reshape(layer.rows, 1)
            found[f"{name}.shape"] = np.array(layer.shape)
    return found


def equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_layer_in_one_step_is_read_once_for_all_its_tensors(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = CodesFormat("int4")
    assert equal(exported(dataset, tmp_path / "out", form, monkeypatch), expected(dataset))
    planned = plan_export(dataset, str(tmp_path / "other"), ExportOptions(), RUN)
    (file,) = planned.output.weights
    assert [step.tensors for step in file.steps] == [(0, 1, 2)] * 3


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.usefixtures("small_runs")
def test_a_layer_in_many_steps_comes_out_the_same(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multiple: int
) -> None:
    form = CodesFormat("int4", row_multiple=multiple)
    assert equal(exported(dataset, tmp_path / "out", form, monkeypatch), expected(dataset))
    planned = plan_export(dataset, str(tmp_path / "other"), ExportOptions(), RUN)
    (file,) = planned.output.weights
    cut = [step for step in file.steps if step.layer_name == "layers.0.weight"]
    assert len(cut) > 4
    assert [step.needs for step in cut if step.tensors == (2,)] == ["scales"] * sum(
        s.tensors == (2,) for s in cut
    )
    for tensor in (1, 2):
        rows = [(step.row_start, step.row_stop) for step in cut if step.tensors == (tensor,)]
        assert rows[0][0] == 0
        assert rows[-1][1] == 200
        assert all(a[1] == b[0] for a, b in pairwise(rows))
        assert all(start % multiple == 0 for start, _ in rows)
    assert sum(step.is_first for step in file.steps) == 3


@pytest.mark.parametrize(("head_rows", "ends"), [(2, [50, 100, 150, 200]), (4, [200])])
def test_one_tensor_is_made_of_one_row_block_after_another_where_runs_may_end_there(
    dataset: str, monkeypatch: pytest.MonkeyPatch, head_rows: int, ends: list[int]
) -> None:
    """Blocks of 50 rows: none is copied to lie beside another, and none is read for two steps."""
    monkeypatch.setattr("arrowquant_dist.export.steps._BY_BLOCK_NBYTES", 1)
    layer = LayerExport("a", "layers.0.weight", (200, 300), 0, 200, FloatValues("F32", head_rows))
    cutter = StepCutter(Dataset.open(dataset), 64 << 20)
    (file,) = cutter.cut((OutputFile(0, "a", (layer,), (b"", b"")),))
    assert [step.row_stop for step in file.steps] == ends


def test_room_is_given_once_for_each_part_of_a_tensor(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that change places are decoded first and laid down after that: in one place they would lie over each
    other."""
    monkeypatch.setattr("arrowquant_dist.export.reading._PART_NBYTES", 100 * 300 * 4)
    packer, asked = FloatValues("F32", 4), list[int]()
    layer = LayerExport("a", "layers.0.weight", (200, 300), 0, 200, packer)
    opened = Dataset.open(dataset)
    cutter = StepCutter(opened, 64 << 20)
    (file,) = cutter.cut((OutputFile(0, "a", (layer,), (b"", b"")),))

    def room(nbytes: int) -> np.ndarray:
        asked.append(nbytes)
        return np.full(nbytes, 0xA5, np.uint8)

    reader = StepReader(opened, lambda nbytes: np.empty(nbytes, np.uint8))
    parts = [data for step in reader.one_by_one(file, room) for _, data in step]
    whole = Assembler(opened, 1, 0, verify=True).quantized(
        region_of(opened.layers["layers.0.weight"], file.steps[0])
    )
    assert np.array_equal(np.concatenate(parts), packer.pack(0, load_now(whole, Budget(64 << 20))))
    assert asked == [100 * 300 * 4] * 2


def test_codes_of_one_row_block_are_gone_before_the_next_is_read(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where other tensors are made of the same blocks: what they need of these is kept."""
    packer, codes = (
        PackedWeight(4, 200, 0, symmetric=True, scale_dtype="F32"),
        list[weakref.ref[np.ndarray]](),
    )
    layer = LayerExport("a.weight", "layers.0.weight", (200, 300), 0, 200, packer)
    opened = Dataset.open(dataset)
    cutter = StepCutter(opened, 64 << 20)
    (file,) = cutter.cut((OutputFile(0, "a", (layer,), (b"", b"", b"", b"")),))
    read = Dataset.read_piece

    def watched(self: Dataset, piece: Piece, *, verify: bool = True, **more: Any) -> QuantizedTensor:
        assert not any(found() is not None for found in codes)
        block = read(self, piece, verify=verify, **more)
        block = replace(block, codes=block.codes.copy())
        codes.append(weakref.ref(block.codes))
        return block

    whole = load_now(
        Assembler(opened, 1, 0, verify=True).quantized(
            region_of(opened.layers["layers.0.weight"], file.steps[0])
        ),
        Budget(64 << 20),
    )
    monkeypatch.setattr(Dataset, "read_piece", watched)
    reader = StepReader(opened, fresh)
    parts = [
        (tensor, data.copy()) for step in reader.one_by_one(file, lambda _: None) for tensor, data in step
    ]
    assert [tensor for tensor, _ in parts] == [0, 0, 0, 0, 1, 2]
    for tensor in range(3):
        made = np.concatenate([data for index, data in parts if index == tensor])
        assert np.array_equal(made, packer.pack(tensor, whole))


def test_the_pass_for_scales_reads_no_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of row blocks that have a row group of their own, as all but small ones have."""
    monkeypatch.setattr("arrowquant_dist.export.steps.RUN_NBYTES", 5 << 20)
    run, config = RunConfig(block_bytes=4 << 20, compression="none"), QuantizationConfig("int8")
    dataset = made_dataset(tmp_path, {"a.weight": torch.randn(64, 65536)}, config, run)
    read: list[int] = []
    monkeypatch.setattr(ReadCounter, "add", lambda _, nbytes: read.append(nbytes))
    exported(dataset, tmp_path / "out", CodesFormat("int8"), monkeypatch)
    codes = 64 * 65536
    assert sum(nbytes >= codes // 4 for nbytes in read) == 4  # of 4 row blocks
    assert codes < sum(read) < codes + 8 * 2048  # and what is small, in two passes


@pytest.mark.parametrize("runs", ["whole", "cut"])
def test_layers_are_quantized_anew_from_the_dataset_s_values(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: str
) -> None:
    if runs == "cut":
        monkeypatch.setattr("arrowquant_dist.export.steps.RUN_NBYTES", 50_000)
    found = exported(dataset, tmp_path / "out", CodesFormat("int2", QuantSpec("int2")), monkeypatch)
    for name, tensor in loaded(dataset).items():
        if tensor.ndim == 2:
            wanted = quantize_tensor(tensor, QuantizationConfig("int2", method="rtn"))
            assert np.array_equal(found[f"{name}.codes"].reshape(-1), wanted.codes)
            assert np.array_equal(found[f"{name}.scales"].reshape(-1), wanted.scales)


@pytest.mark.parametrize("runs", ["whole", "cut"])
def test_layers_are_quantized_anew_from_a_source_s_values(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: str
) -> None:
    if runs == "cut":
        monkeypatch.setattr("arrowquant_dist.export.steps.RUN_NBYTES", 50_000)
    source = save_checkpoint(tmp_path / "source", TENSORS)
    form = CodesFormat("int8", QuantSpec("int8"))
    found = exported(dataset, tmp_path / "out", form, monkeypatch, source)
    for name, tensor in TENSORS.items():
        if tensor.ndim == 2:
            wanted = quantize_tensor(tensor, QuantizationConfig("int8"))
            assert np.array_equal(found[f"{name}.codes"].reshape(-1), wanted.codes)
            assert np.array_equal(found[f"{name}.scales"].reshape(-1), wanted.scales)


def test_a_source_with_other_layers_is_refused_by_name(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {**TENSORS, "layers.1.weight": torch.zeros(200, 300, dtype=torch.float16)}
    del changed["odd.weight"]
    source = save_checkpoint(tmp_path / "source", changed)
    with pytest.raises(
        InvalidCheckpoint, match=r"other layers than the dataset: layers\.1\.weight, odd\.weight"
    ):
        exported(dataset, tmp_path / "out", CodesFormat("int8", QuantSpec("int8")), monkeypatch, source)
    assert not (tmp_path / "out").exists()


def test_what_takes_more_than_the_budget_at_once_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer with one scale for all of it is quantized anew as a whole."""
    dataset = made_dataset(tmp_path, {"a.weight": torch.randn(64, 4096)}, BY_ROW)
    per_tensor = QuantSpec("int8", per_channel=False, group_size=0)
    monkeypatch.setattr("arrowquant_dist.export.run.format_of", lambda _: CodesFormat("int8", per_tensor))
    monkeypatch.setattr("arrowquant_dist.export.options.MIB", 1)
    options = ExportOptions(memory_budget=1 << 20)
    with pytest.raises(
        MemoryBudgetExceeded, match=r"a\.weight: .*raise --memory-budget to \d+MiB"
    ) as refused:
        plan_export(dataset, str(tmp_path / "out"), options, RUN)
    enough = int(str(refused.value).rpartition(" ")[2].removesuffix("MiB"))
    plan_export(dataset, str(tmp_path / "out"), ExportOptions(memory_budget=enough << 20), RUN)
    with pytest.raises(MemoryBudgetExceeded, match=f"raise --memory-budget to {enough}MiB"):
        plan_export(dataset, str(tmp_path / "out"), ExportOptions(memory_budget=enough - 1 << 20), RUN)


def test_where_two_workers_have_too_little_for_a_layer_one_works_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """72 MB for a layer that is quantized anew as a whole: two workers of 160 MiB have 59 each, one has 119."""
    tensors = {f"{name}.weight": torch.randn(3072, 2048) for name in "ab"}
    dataset = made_dataset(tmp_path, tensors, QuantizationConfig("int8"))
    per_tensor = QuantSpec("int8", per_channel=False, group_size=0)
    options = ExportOptions(memory_budget="160MiB", max_file_bytes="6MiB")
    monkeypatch.setattr("arrowquant_dist.export.run.format_of", lambda _: CodesFormat("int8"))
    assert plan_export(dataset, str(tmp_path / "out"), options, RUN).context.workers == 2
    monkeypatch.setattr("arrowquant_dist.export.run.format_of", lambda _: CodesFormat("int8", per_tensor))
    planned = plan_export(dataset, str(tmp_path / "out"), options, RUN)
    assert (planned.context.workers, planned.engine.workers_of_a_process(2)) == (1, 1)


def test_what_is_read_from_the_disk_is_asked_for_before(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that the page cache does not have waits behind what is being written."""
    asked, read = list[tuple[str, int]](), list[tuple[str, int]]()
    announce, read_into = LocalStore.announce, LocalStore.read_into

    def announced(store: LocalStore, path: str, start: int, nbytes: int) -> None:
        asked.append((path, start))
        announce(store, path, start, nbytes)

    def noted(store: LocalStore, path: str, start: int, out: np.ndarray) -> None:
        if path.endswith(".parquet"):
            assert len(asked) == blocks  # of the second layer too, before the first one is read
            read.append((path, start))
        read_into(store, path, start, out)

    packer = PackedWeight(4, 200, 0, symmetric=True, scale_dtype="F32")
    layers = [
        LayerExport(name, f"layers.{i}.weight", (200, 300), 0, 200, packer) for i, name in enumerate("ab")
    ]
    opened = Dataset.open(dataset)
    blocks = sum(len(opened.layers[layer.layer].blocks) for layer in layers)
    literals = (b"",) * (2 * len(layers[0].tensors) + 1)
    (file,) = StepCutter(opened, 64 << 20).cut((OutputFile(0, "a", tuple(layers), literals),))
    monkeypatch.setattr(LocalStore, "announce", announced)
    monkeypatch.setattr(LocalStore, "read_into", noted)
    for parts in StepReader(opened, fresh).one_by_one(file, lambda _: None):
        assert [*parts]
    assert {*asked} <= {*read}
