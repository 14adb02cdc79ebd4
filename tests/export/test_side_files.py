"""Small files of a dataset are verified like its weights, in each way of reading them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from arrowquant_dist import RunConfig, load_model, load_tokenizer
from arrowquant_dist.config import QuantizationConfig
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import (
    ArrowQuantError,
    CorruptWeights,
    IncompleteDataset,
    InvalidCheckpoint,
    StorageError,
    TargetConflict,
)
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.export.options import ExportFormatName
from arrowquant_dist.plugins.vllm.folder import ServedAsCodes, ServedDecoded, write_model_folder
from arrowquant_dist.plugins.vllm.settings import check_small_files
from tests.servers.fixtures import Bucket

RUN = RunConfig(engine="inline", workers=1)


def export_as(output_format: ExportFormatName) -> Callable[[str, Path, RunConfig], object]:
    return lambda target, out, run: export_dataset(target, out, ExportOptions(output_format), run)


def vllm_folder(served: ServedAsCodes | ServedDecoded) -> Callable[[str, Path, RunConfig], object]:
    return lambda target, out, run: write_model_folder(target, out, served, run)


WAYS = {
    **{name: export_as(name) for name in ("safetensors", "compressed-tensors", "gguf", "v1")},
    "vllm": vllm_folder(ServedAsCodes()),
    "vllm --decoded": vllm_folder(ServedDecoded()),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    folder = tmp_path_factory.mktemp("side")
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64)).save_pretrained(folder / "source")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder / "source")
    config = QuantizationConfig("int8", mixed_precision_layers=["embed", "lm_head"])
    quantize(str(folder / "source"), str(folder / "dataset"), config, RUN)
    return folder / "dataset"


@pytest.fixture
def copied(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copied"))


def flip(path: Path) -> None:
    """One bit of a digit or letter, so that it is JSON as before."""
    data = bytearray(path.read_bytes())
    place = data.index(b"32") if b"32" in data else data.index(b"e")
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("way", WAYS)
def test_a_flipped_bit_is_found_and_its_file_named(copied: Path, tmp_path: Path, way: str, file: str) -> None:
    flip(copied / file)
    with pytest.raises(CorruptWeights, match=r"not the file that the manifest lists") as raised:
        WAYS[way](str(copied), tmp_path / "out", RUN)
    assert raised.value.uri == str(copied / file)
    assert not (tmp_path / "out" / file).exists()
    assert not (tmp_path / "out/export.json").exists()


@pytest.mark.parametrize("way", ["safetensors", "compressed-tensors", "vllm"])
def test_in_an_object_store_too(copied: Path, tmp_path: Path, bucket: Bucket, way: str) -> None:
    flip(copied / "config.json")
    uri = f"{bucket.uri}/side"
    bucket.objects.upload_folder(copied, uri)
    with pytest.raises(CorruptWeights, match=r"side/config\.json: this is not the file that the manifest"):
        WAYS[way](uri, tmp_path / "out", RUN.replace(storage_options=bucket.storage_options))


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_gone_is_missed(copied: Path, tmp_path: Path, way: str) -> None:
    (copied / "generation_config.json").unlink()
    with pytest.raises(
        IncompleteDataset, match=r"generation_config\.json: listed in its manifest, but not there"
    ):
        WAYS[way](str(copied), tmp_path / "out", RUN)


def test_a_model_and_a_tokenizer_miss_it_as_well(copied: Path) -> None:
    (copied / "generation_config.json").unlink()
    with pytest.raises(
        IncompleteDataset, match=r"generation_config\.json: listed in its manifest, but not there"
    ):
        load_model(copied, LlamaForCausalLM)
    load_model(copied, LlamaForCausalLM, verify=False)
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(IncompleteDataset):
        load_tokenizer(copied)


def test_vllm_that_serves_the_dataset_itself_has_read_what_the_run_copied(
    copied: Path, tmp_path: Path
) -> None:
    dataset = Dataset.open(str(copied))
    check_small_files(str(copied), dataset)
    flip(copied / "config.json")
    check_small_files(str(tmp_path), dataset)  # a folder of its own
    (tmp_path / "link").symlink_to(copied)
    with pytest.raises(CorruptWeights, match=r"config\.json: this is not the file .* arrowquant vllm TARGET"):
        check_small_files(str(tmp_path / "link"), dataset)
    (copied / "config.json").unlink()
    with pytest.raises(IncompleteDataset, match=r"config\.json: listed in its manifest, but not there"):
        check_small_files(str(copied), dataset)


def test_a_folder_for_vllm_that_cannot_be_written_is_one_sentence(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TargetConflict, match="is not a directory; choose another path"):
        write_model_folder(str(dataset), tmp_path / "file", ServedDecoded(), RUN)
    with pytest.raises(StorageError, match=r"/proc/x: the folder can't be written \("):
        write_model_folder(str(dataset), "/proc/x", ServedDecoded(), RUN)
    with pytest.raises(StorageError, match=r"the folder can't be written \("):
        write_model_folder(str(dataset), tmp_path / "file/inside", ServedDecoded(), RUN)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_for_vllm_that_a_full_disk_cut_short_is_no_model_and_is_completed_by_the_same_command(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, room = Path.write_bytes, [0]  # how many more files there is room for

    def write(path: Path, data: bytes) -> int:
        room[0] -= 1
        if room[0] < 0:
            own(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return own(path, data)

    write_model_folder(str(dataset), tmp_path / "quiet", ServedDecoded(), RUN)
    whole = sorted(path.name for path in (tmp_path / "quiet").iterdir())
    monkeypatch.setattr(Path, "write_bytes", write)
    for files in range(len(whole)):
        room[0] = files
        with pytest.raises(StorageError, match=r"can't be written \(No space left on device\)"):
            write_model_folder(str(dataset), tmp_path / "out", ServedDecoded(), RUN)
        left = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert set(left) < set(whole)
        assert "config.json" not in left
    room[0] = len(whole)
    write_model_folder(str(dataset), tmp_path / "out", ServedDecoded(), RUN)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == whole


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


INSTEAD: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a FIFO": put_fifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link out": lambda path: path.symlink_to("/etc/hostname"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "generation_config.json", "modules.json"])
def test_what_is_no_file_in_the_place_of_one_is_refused_and_never_waited_for(
    copied: Path, tmp_path: Path, file: str, instead: str
) -> None:
    (copied / file).unlink(missing_ok=True)
    INSTEAD[instead](copied / file)
    is_listed = file != "modules.json"
    ways: list[Callable[[], object]] = [
        lambda: export_dataset(str(copied), tmp_path / "out", ExportOptions(), RUN),
        lambda: write_model_folder(str(copied), tmp_path / "folder", ServedDecoded(), RUN),
        lambda: load_model(copied, LlamaForCausalLM),
        lambda: load_tokenizer(copied),
    ]
    for way in ways if is_listed else ways[2:]:
        with pytest.raises(ArrowQuantError, match=file.replace(".", r"\.")):
            way()
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("instead", INSTEAD)
def test_a_source_s_config_that_is_no_file_is_refused(tmp_path: Path, dataset: Path, instead: str) -> None:
    source = Path(shutil.copytree(dataset.parent / "source", tmp_path / "source"))
    (source / "config.json").unlink()
    INSTEAD[instead](source / "config.json")
    with pytest.raises(InvalidCheckpoint, match=r"config\.json: it is a"):
        quantize(str(source), str(tmp_path / "target"), QuantizationConfig("int8"), RUN)
    assert not (tmp_path / "target").exists()
