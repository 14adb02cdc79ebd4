"""What may be read of a folder: regular files within it, up to their sizes."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.errors import ArrowQuantError, InvalidCheckpoint, StorageError
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.storage.open import open_store
from tests.folder.places import json_of, put_local, safetensors_of, values_of

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    put_local(folder, {"model.safetensors": safetensors_of("a"), "config.json": b"{}"})
    return folder


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 100 characters
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIAL = [make_fifo, make_socket, make_endless]
USED = [
    "config.json",
    "1_Pooling/config.json",
    "modules.json",
    "model_index.json",
    "tokenizer.json",
    "source.spm",
    "LICENSE",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00001.safetensors",
]


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", USED)
def test_a_fifo_socket_or_device_in_a_file_s_place_is_one_error(
    model: Path, name: str, make: Callable[[Path], None]
) -> None:
    place = model / name
    if name.startswith("model-"):
        (model / "model.safetensors").unlink()
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    make(place)
    with pytest.raises(InvalidCheckpoint) as caught:
        open_checkpoint(str(model))
    assert caught.value.uri == str(place)


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_one_of_an_unknown_name_is_ignored_and_told(model: Path, make: Callable[[Path], None]) -> None:
    make(model / "ray_pipe")
    assert values_of(str(model)) == {"a": 1}
    if make is not make_endless:
        assert "not copied (not regular files): ray_pipe" in open_checkpoint(str(model)).notes
        assert "ray_pipe" not in open_checkpoint(str(model)).sidecars


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_the_source_itself_may_be_none_of_them(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"it is a (FIFO|socket|device)"):
        open_checkpoint(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_a_store_opens_none_of_them(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    store = open_store(str(tmp_path))
    for read in (store.read, store.info, lambda path: store.read_range(path, ByteRange(0, 1))):
        with pytest.raises(StorageError, match="not a regular file"):
            read("x")


def test_a_fifo_beside_a_file_s_config_is_not_waited_for(tmp_path: Path) -> None:
    """The config is read where tensors look like codes."""
    codes = {"a.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(1, 1)}
    put_local(tmp_path, {"x.safetensors": save(codes)})
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InvalidCheckpoint, match="FIFO"):
        open_checkpoint(str(tmp_path / "x.safetensors"))


LEAVING = {
    "LICENSE": "/etc/passwd",
    "config.json": "../elsewhere/config.json",
    "1_Pooling": "../elsewhere",
    "additional_chat_templates": "../elsewhere",
    "tokenizer": "../elsewhere",
    "source.spm": "../model/../elsewhere/config.json",
    "model.safetensors": "../elsewhere/model.safetensors",
    "model.safetensors.index.json": "../elsewhere/config.json",
    "modules.json": "../elsewhere/config.json",
}


@pytest.mark.parametrize(("name", "to"), LEAVING.items(), ids=LEAVING.keys())
def test_a_link_that_leaves_the_folder_is_an_error_that_names_it(
    model: Path, tmp_path: Path, name: str, to: str
) -> None:
    put_local(tmp_path / "elsewhere", {"config.json": b"{}", "model.safetensors": safetensors_of("b")})
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(to)
    target = tmp_path / "out"
    with pytest.raises(InvalidCheckpoint, match="a link out of the source's folder") as caught:
        quantize(str(model), str(target), QuantizationConfig(), RunConfig(engine="inline"))
    assert caught.value.uri == str(model / name)
    assert not target.exists()


def test_a_link_in_a_named_folder_and_one_by_way_of_another_are_errors(model: Path, tmp_path: Path) -> None:
    put_local(tmp_path / "elsewhere", {"secret": b"x"})
    put_local(
        model, {"modules.json": json_of([{"path": "2_Dense", "type": "m.Pooling"}]), "2_Dense/a.json": b"{}"}
    )
    (model / "2_Dense/notes.txt").symlink_to("../hop")
    (model / "hop").symlink_to("../elsewhere/secret")
    with pytest.raises(InvalidCheckpoint, match="a link out of the source's folder"):
        open_checkpoint(str(model))


def test_an_index_does_not_lead_through_a_linked_folder(model: Path, tmp_path: Path) -> None:
    put_local(tmp_path / "elsewhere", {"m.safetensors": safetensors_of("a")})
    (model / "model.safetensors").unlink()
    (model / "sub").symlink_to(tmp_path / "elsewhere")
    put_local(model, {"model.safetensors.index.json": json_of({"weight_map": {"a": "sub/m.safetensors"}})})
    with pytest.raises(InvalidCheckpoint, match="a link out of the source's folder"):
        open_checkpoint(str(model))


def test_links_within_the_folder_and_a_folder_that_is_a_link_are_followed(
    model: Path, tmp_path: Path
) -> None:
    (model / "model.safetensors").rename(model / "weights-v2.data")
    (model / "model.safetensors").symlink_to("weights-v2.data")
    (tmp_path / "latest").symlink_to(model)
    assert values_of(str(tmp_path / "latest")) == {"a": 1}


def test_links_that_nothing_needs_do_no_harm(model: Path, tmp_path: Path) -> None:
    (model / "logs").symlink_to("/var")
    (model / "loop").symlink_to(".")
    (model / "self").symlink_to("self")
    (model / "gone").symlink_to(tmp_path / "gone")
    (model / "old.onnx").symlink_to("/etc/passwd")
    assert values_of(str(model)) == {"a": 1}
    assert open_checkpoint(str(model)).sidecars == ("config.json",)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_that_leads_nowhere_is_an_error_where_it_would_be_read(model: Path, name: str) -> None:
    put_local(model, {"pytorch_model.bin": b"not to be taken instead"})
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("gone")
    with pytest.raises(InvalidCheckpoint, match="a link that leads nowhere"):
        open_checkpoint(str(model))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A snapshot in the Hugging Face cache."""
    repository = tmp_path / "hub/models--org--name"
    snapshot = repository / "snapshots/0123abc"
    files = {"model.safetensors": safetensors_of("a"), "config.json": b"{}", "1_Pooling/config.json": b"{}"}
    for number, (name, data) in enumerate(files.items()):
        put_local(repository / "blobs", {f"{number:064x}": data})
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(f"{'../' * (2 + name.count('/'))}blobs/{number:064x}")
    return snapshot


def test_a_snapshot_s_links_into_its_blobs_are_followed(cache: Path) -> None:
    assert values_of(str(cache)) == {"a": 1}
    assert open_checkpoint(str(cache)).sidecars == ("1_Pooling/config.json", "config.json")
    target = cache.parents[3] / "out"
    quantize(str(cache), str(target), QuantizationConfig(), RunConfig(engine="inline"))
    assert not (target / "config.json").is_symlink()


@pytest.mark.parametrize(
    "to",
    [
        "../../../models--org--other/blobs/0",
        "../../refs/main",
        "../../blobs/../refs/main",
        "../other/LICENSE",
        "../../../../secret",
    ],
)
def test_a_snapshot_s_links_lead_nowhere_else(cache: Path, to: str) -> None:
    hub = cache.parents[2]
    put_local(
        hub, {"models--org--other/blobs/0": b"x", "models--org--name/refs/main": b"x", "../secret": b"x"}
    )
    put_local(cache.parent / "other", {"LICENSE": b"x"})
    (cache / "LICENSE").symlink_to(to)
    with pytest.raises(InvalidCheckpoint, match="a link out of the source's folder"):
        open_checkpoint(str(cache))


def test_a_blob_that_is_a_link_out_is_an_error(cache: Path) -> None:
    (cache.parents[1] / "blobs/evil").symlink_to("/etc/passwd")
    (cache / "LICENSE").symlink_to("../../blobs/evil")
    with pytest.raises(InvalidCheckpoint, match="a link out of the source's folder"):
        open_checkpoint(str(cache))


@pytest.mark.parametrize("name", ["LICENSE", "weights"])
def test_a_dataset_as_a_source_is_no_way_out_either(model: Path, tmp_path: Path, name: str) -> None:
    quantize(str(model), str(tmp_path / "out"), QuantizationConfig(), RunConfig(engine="inline"))
    if name == "weights":
        shutil.move(tmp_path / "out/weights", tmp_path / "moved")
        (tmp_path / "out/weights").symlink_to(tmp_path / "moved")
    else:
        (tmp_path / "out" / name).symlink_to("/etc/passwd")
    with pytest.raises(ArrowQuantError, match="a link out of the source's folder"):
        open_checkpoint(str(tmp_path / "out"))


def test_a_file_that_grows_is_read_to_its_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    growing, stop = threading.Event(), threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not stop.is_set() and file.tell() < 8 << 20:
                file.write(b" " * 4096)
                file.flush()
                growing.set()
            growing.set()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        assert growing.wait(30)
        assert len(open_store(str(tmp_path)).read("config.json")) <= 8 << 20
    finally:
        stop.set()
        thread.join()
