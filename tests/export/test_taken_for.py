"""An export, finished or begun, in place of a dataset, a source or a target is recognized as an export."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.errors import ArrowQuantError, IncompleteDataset, NotFound, TargetConflict
from arrowquant_dist.export import ExportOptions, export_dataset, plan_export
from arrowquant_dist.report.contents import read_contents
from arrowquant_dist.report.render import load_report
from arrowquant_dist.verify import verify
from tests.export.datasets import made_dataset, same
from tests.sources import random_weights

RUN = RunConfig(engine="inline", workers=1)
BEGUN = r"an unfinished export.*run the same export command again"


def quantize(source: Path) -> None:
    ArrowQuantizer(QuantizationConfig("int8")).quantize(str(source), str(source) + "-again")


def export(target: Path) -> None:
    export_dataset(str(target), str(target) + "-out", ExportOptions("safetensors"), RUN)


READERS: dict[str, Callable[[Path], object]] = {
    "verify": verify,
    "report": load_report,
    "loader": WeightLoader,
    "export": export,
    "inspect": read_contents,
    "quantize": quantize,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of exports by their formats. The dataset is `dataset`; that of V1 has three files."""
    folder = tmp_path_factory.mktemp("exports")
    tensors = random_weights(3, 512, 512, torch.float32)
    dataset = made_dataset(
        folder / "dataset", tensors, side_files={"config.json": b'{"model_type": "llama"}'}
    )
    export_dataset(dataset, folder / "safetensors", ExportOptions("safetensors"), RUN)
    export_dataset(dataset, folder / "v1", ExportOptions("v1", max_file_bytes="1200KB"), RUN)
    assert len([*(folder / "v1/weights").iterdir()]) == 3
    return folder


def begun(finished: Path, out: Path, *, weights_only: bool) -> Path:
    """As an export is whose process was killed before its record."""
    shutil.copytree(finished, out)
    (out / "export.json").unlink()
    if weights_only:
        (out / "config.json").unlink()
    return out


def assert_is_called_begun(out: Path, reader: str) -> None:
    with pytest.raises(ArrowQuantError, match=BEGUN) as raised:
        READERS[reader](out)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("reader", READERS)
def test_weights_alone_are_an_export_that_has_not_finished(
    finished: Path, tmp_path: Path, reader: str
) -> None:
    assert_is_called_begun(begun(finished / "safetensors", tmp_path / "out", weights_only=True), reader)


@pytest.mark.parametrize("reader", ["verify", "report", "loader", "export"])
def test_so_are_all_files_but_the_record_where_a_dataset_is_asked_for(
    finished: Path, tmp_path: Path, reader: str
) -> None:
    assert_is_called_begun(begun(finished / "safetensors", tmp_path / "out", weights_only=False), reader)


def test_the_folder_s_config_is_written_after_all_other_small_files(tmp_path: Path) -> None:
    names = ("1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json")
    files = dict.fromkeys(names, b'{"model_type": "bert"}')
    dataset = made_dataset(tmp_path, random_weights(1, 64, 64, torch.float32), side_files=files)
    plan = plan_export(dataset, str(tmp_path / "out"), ExportOptions("safetensors"), RUN)
    expected = ["tokenizer.json", "1_Pooling/config.json", "modules.json", "config.json"]
    assert plan.output.small.paths == expected


def test_an_export_that_was_stopped_before_its_config_is_no_source(finished: Path, tmp_path: Path) -> None:
    """What says that the weights are a sentence model's is written before config.json, which says that all is here."""
    out = begun(finished / "safetensors", tmp_path / "out", weights_only=True)
    (out / "modules.json").write_text("[]")
    with pytest.raises(ArrowQuantError, match=BEGUN):
        READERS["inspect"](out)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("output_format", ["safetensors", "v1"])
def test_an_export_in_a_target_s_place_is_called_that(
    finished: Path,
    tmp_path: Path,
    output_format: str,
    weights_only: bool,  # noqa: FBT001
) -> None:
    out = begun(finished / output_format, tmp_path / "out", weights_only=weights_only)
    for target in (out, finished / output_format):
        with pytest.raises(TargetConflict, match="the target holds an export "):
            ArrowQuantizer(QuantizationConfig("int8")).quantize(str(finished / "dataset/source"), str(target))


@pytest.mark.parametrize("gone", ["model-00001-of-00003", "model-00003-of-00003"])
@pytest.mark.parametrize("reader", ["loader", "export", "inspect", "quantize"])
def test_v1_files_of_an_export_that_lacks_one_are_no_dataset(
    finished: Path, tmp_path: Path, reader: str, gone: str
) -> None:
    out = begun(finished / "v1", tmp_path / "out", weights_only=True)
    (out / f"weights/{gone}.parquet").unlink()
    with pytest.raises(ArrowQuantError, match=r"2 of 3 files are here .*an unfinished export"):
        READERS[reader](out)


def test_verify_says_which_files_of_a_begun_v1_export_are_missing(finished: Path, tmp_path: Path) -> None:
    out = begun(finished / "v1", tmp_path / "out", weights_only=True)
    (problem,) = verify(out).problems
    assert (problem.kind, problem.uri) == (IncompleteDataset.kind, str(out))
    assert "an unfinished export" in problem.message
    (out / "weights/model-00002-of-00003.parquet").unlink()
    (problem,) = verify(out).problems
    assert problem.message.startswith("2 of 3 files are here")


def test_files_whose_names_count_them_are_missed_in_any_folder(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copied"
    shutil.copytree(finished / "v1", out)
    (out / "weights/model-00002-of-00003.parquet").unlink()
    with pytest.raises(IncompleteDataset, match=r"2 of 3 files are here .*fetch those that are missing"):
        WeightLoader(out)


def test_a_finished_v1_export_is_a_sound_dataset(finished: Path) -> None:
    found = verify(finished / "v1")
    assert found.is_sound
    assert (found.objects, found.layers) == (3, 6)
    ours, theirs = WeightLoader(finished / "v1"), WeightLoader(finished / "dataset/dataset")
    assert same(dict(ours), dict(theirs))


@pytest.mark.parametrize("place", ["config.json", "weights/model-00002-of-00003.parquet"])
def test_verify_finds_what_of_a_v1_export_is_not_what_its_record_lists(
    finished: Path, tmp_path: Path, place: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished / "v1", out)
    data = bytearray((out / place).read_bytes())
    data[len(data) // 2] ^= 1
    (out / place).write_bytes(data)
    problems = verify(out).problems
    assert any(
        p.uri == str(out / place) and "its hash is not that of export.json" in p.message for p in problems
    )
    (out / place).write_bytes(data[:-1])
    assert any(f"export.json says {len(data)}" in p.message for p in verify(out).problems)


def test_verify_finds_a_file_beside_those_of_a_v1_export(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished / "v1", out)
    shutil.copy(out / "weights/model-00001-of-00003.parquet", out / "weights/other.parquet")
    kinds = {problem.kind for problem in verify(out).problems}
    assert "stray-object" in kinds


def test_a_gguf_export_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 20 + b"arrowquant.export" + b"\0" * 9)
    for reader in ("quantize", "verify", "loader", "export", "inspect", "report"):
        with pytest.raises(ArrowQuantError, match=BEGUN):
            READERS[reader](tmp_path)
    (tmp_path / "export.json").write_text('{"format": "gguf", "origin": {"dataset": "s3://b/model"}}')
    for reader in ("quantize", "verify", "loader", "export", "inspect", "report"):
        with pytest.raises(ArrowQuantError, match=r"an export as gguf, not a dataset.*s3://b/model"):
            READERS[reader](tmp_path)


@pytest.mark.parametrize("reader", ["verify", "report", "loader"])
def test_a_file_that_is_no_parquet_is_no_dataset(finished: Path, reader: str) -> None:
    file = next((finished / "safetensors").glob("*.safetensors"))
    with pytest.raises(NotFound, match=r"(not|so not) a dataset; give the target of a run"):
        READERS[reader](file)
