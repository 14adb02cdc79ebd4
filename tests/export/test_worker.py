"""A worker writes a file completely or not at all, from verified values."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from arrowquant_dist import RunConfig
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.dataset.prefetch import Budget, Load, Stream
from arrowquant_dist.errors import CorruptWeights, Interrupted, PartialRun, SourceChanged
from arrowquant_dist.export import ExportOptions, export_dataset, plan_export
from arrowquant_dist.export.files import Step
from arrowquant_dist.export.options import ExportFormatName
from arrowquant_dist.export.reading import Packed
from arrowquant_dist.target.index import IndexTable, read_table
from tests.conftest import CHECKOUT
from tests.datasets import manifest_of
from tests.export.codes_format import CodesFormat
from tests.export.datasets import flip, made_dataset
from tests.sources import random_weights

pytestmark = pytest.mark.usefixtures("ticks")
RUN = RunConfig(engine="inline", workers=1)
OPTIONS = ExportOptions(max_file_bytes="1MiB")


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return made_dataset(tmp_path, random_weights(3, 512, 512, torch.float32))


@pytest.mark.parametrize("export_format", ["safetensors", "v1"])
def test_a_flipped_bit_is_found_and_its_file_is_not_written(
    dataset: str, tmp_path: Path, export_format: ExportFormatName
) -> None:
    part = flip(dataset, "layers.1.weight")
    options = ExportOptions(export_format, max_file_bytes="1MiB")
    with pytest.raises(CorruptWeights) as caught:
        export_dataset(dataset, tmp_path / "out", options, RUN)
    assert (caught.value.layer, caught.value.uri) == ("layers.1.weight", part)
    planned = plan_export(dataset, tmp_path / "out", options, RUN)
    damaged = [f.path for f in planned.output.weights if any(x.name == "layers.1.weight" for x in f.layers)]
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert there == {file.path for file in planned.output.weights} - {*damaged}


def test_a_dataset_that_is_replaced_meanwhile_is_noticed(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the plan and the first worker, and while a file is written."""
    from arrowquant_dist.export import worker

    def replace_manifest() -> None:
        path = Path(dataset) / "manifest.json"
        path.write_text(json.dumps({**manifest_of(Path(dataset)), "created_at": "later"}))

    planned = plan_export(dataset, tmp_path / "out", OPTIONS, RUN)
    replace_manifest()
    with pytest.raises(SourceChanged):
        planned.context.open_worker(None, lambda _: None)
    own = worker._HashedFile.add

    def replacing(self: worker._HashedFile, step: Step, tensor: int, data: np.ndarray) -> None:
        own(self, step, tensor, data)
        part = Path(dataset) / manifest_of(Path(dataset))["parts"][0]["path"]
        part.write_bytes(part.read_bytes())

    monkeypatch.setattr(worker._HashedFile, "add", replacing)
    with pytest.raises((SourceChanged, PartialRun)):
        export_dataset(dataset, tmp_path / "out", OPTIONS, RUN)
    assert not (tmp_path / "out/export.json").exists()
    assert not (tmp_path / "out/config.json").exists()


def test_the_index_is_read_once_whatever_the_number_of_workers(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()

    def counting(data: bytes) -> IndexTable:
        read.append(len(data))
        return read_table(data)

    monkeypatch.setattr("arrowquant_dist.target.manifest.read_table", counting)
    export_dataset(dataset, tmp_path / "out", OPTIONS, RUN.replace(workers=3))
    assert len(read) == 1


def test_what_travels_to_a_worker_is_less_than_a_kilobyte_a_tensor(tmp_path: Path) -> None:
    dataset = made_dataset(tmp_path, random_weights(100, 32, 64, torch.float32))
    planned = plan_export(dataset, tmp_path / "out", ExportOptions(), RUN)
    [file] = planned.output.weights
    assert len(pickle.dumps(file)) < 1024 * len(file.layers)
    assert [layer.name for layer in file.stored] == [layer.layer for layer in file.layers]
    assert len(pickle.dumps(planned.context)) < 8192


def test_an_export_of_codes_as_they_are_imports_neither_numba_nor_arrow_s_functions(tmp_path: Path) -> None:
    """To import Numba takes a fifth of a second, and pyarrow.compute as long as to open many datasets."""
    tensors = {"model.layers.0.mlp.down_proj.weight": torch.randn(64, 128)}
    dataset = made_dataset(tmp_path, tensors, side_files={"config.json": b'{"model_type": "llama"}'})
    script = """
import sys
from arrowquant_dist import RunConfig
from arrowquant_dist.export import ExportOptions, export_dataset
export_dataset(sys.argv[1], sys.argv[2], ExportOptions("compressed-tensors"), RunConfig(engine="inline"))
assert not {"numba", "pyarrow.compute"} & sys.modules.keys()
"""
    command = [sys.executable, "-c", script, dataset, str(tmp_path / "out")]
    subprocess.run(command, cwd=CHECKOUT, check=True)


@pytest.mark.parametrize(
    ("cpus", "workers", "readers"), [(1, 1, [1]), (2, 1, [2]), (2, 2, []), (8, 2, [2]), (8, 8, [])]
)
def test_workers_of_a_process_read_by_no_more_threads_than_there_are_cpus(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    workers: int,
    readers: list[int],
) -> None:
    """As many workers as CPUs read by themselves."""
    monkeypatch.setattr("arrowquant_dist.export.worker.usable_cpus", lambda: cpus)
    begun: list[int] = []

    class Counted(Stream[Packed]):
        def __init__(self, loads: Iterable[Load[Packed]], budget: Budget, threads: int) -> None:
            begun.append(threads)
            super().__init__(loads, budget, threads)

    monkeypatch.setattr("arrowquant_dist.export.worker.Stream", Counted)
    planned = plan_export(dataset, tmp_path / "out", OPTIONS, RUN)
    worker = replace(planned.context, workers=workers).open_worker(None, lambda *_: None)
    worker.run(planned.output.weights[0], lambda _: None, lambda: False)
    assert begun == readers


def test_a_worker_that_is_stopped_leaves_nothing(dataset: str, tmp_path: Path) -> None:
    planned = plan_export(dataset, tmp_path / "out", OPTIONS, RUN)
    worker, done = planned.context.open_worker(None, lambda _: None), list[Step]()
    with pytest.raises(Interrupted):
        worker.run(planned.output.weights[0], done.append, lambda: True)
    assert not done
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_file_that_is_there_is_hashed_and_not_written_again(dataset: str, tmp_path: Path) -> None:
    planned = plan_export(dataset, tmp_path / "out", OPTIONS, RUN)
    worker, file = planned.context.open_worker(None, lambda _: None), planned.output.weights[0]
    assert worker.committed(file) is None
    first = worker.run(file, lambda _: None, lambda: False)
    told = list[Step]()
    again = worker.run(file, told.append, lambda: False)
    assert first.worker == worker.name
    assert again.worker == ""
    assert again.notice == first.notice == worker.committed(file).notice  # type: ignore[union-attr]
    assert tuple(told) == file.steps


def test_kernels_that_a_layer_is_quantized_anew_by_are_made_ready_first_and_it_is_said(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the thread that runs the file, before the first step; once for all files of a worker."""
    spec = QuantSpec("int8")
    monkeypatch.setattr("arrowquant_dist.export.run.format_of", lambda _: CodesFormat("int8", spec))
    double, happened = numba.njit(lambda value: 2 * value), list[str]()

    def quantize_sample(dtype: str, spec: QuantSpec) -> None:
        double(1)  # compiled here and now
        happened.append(f"{dtype} {spec.quant_type}")

    monkeypatch.setattr("arrowquant_dist.worker.kernels._quantize_sample", quantize_sample)
    planned = plan_export(dataset, tmp_path / "out", OPTIONS, RUN)
    worker = planned.context.open_worker(None, lambda purpose: happened.append(f"compile {purpose}"))
    receipts = [
        worker.run(file, lambda _: happened.append("step"), lambda: False) for file in planned.output.weights
    ]
    assert happened[:4] == ["compile int8 by rtn", "float32 int8", "compile ", "step"]
    assert {*happened[4:]} <= {"step"}
    assert receipts[0].seconds["compile"] > 0
