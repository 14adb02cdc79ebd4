"""PyTorch files: the tensors that torch.load gives, without running anything in the files."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint import torch_private
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.pickle_scan import check_pickle
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint
from tests.checkpoint.checkpoint_files import NOT_CAST, read_all


@pytest.fixture(params=["private", "public"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every claim holds in both ways of reading: with torch's private names, and where torch has them no more."""
    if request.param == "public":
        monkeypatch.setattr(torch_private, "_MODULE", "torch._subclasses.moved")
    assert torch_private.is_there() == (request.param == "private")
    return str(request.param)


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def saved(folder: Path, value: Any, **options: Any) -> str:
    path = folder / "pytorch_model.bin"
    torch.save(value, path, **options)
    return str(path)


def rezipped(source: str, folder: Path, change: dict[str, bytes | None], **options: Any) -> str:
    """The archive again, with some records replaced or (None) left out, written by Python's zipfile."""
    path = folder / "changed.bin"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", **options) as new:
        prefix = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            data = change.get(name.removeprefix(f"{prefix}/"), old.read(name))
            if data is not None:
                new.writestr(name, data)
    return str(path)


def assert_same(path: str, expected: dict[str, torch.Tensor]) -> None:
    checkpoint = open_checkpoint(path)
    values = read_all(checkpoint)
    stored = {layer.name: layer for layer in checkpoint.layers}
    assert set(stored) | set(checkpoint.aliases) == set(expected)
    for name, tensor in expected.items():
        layer = stored[checkpoint.aliases.get(name, name)]
        assert layer.shape == tuple(tensor.shape)
        assert f"torch.{layer.dtype}" == str(tensor.dtype)
        assert values[layer.name] == tensor_bytes(tensor), name


def test_every_dtype_scalars_empty_tensors_and_parameters(tmp_path: Path) -> None:
    state = {name: torch.arange(5).to(getattr(torch, name)) for name in DTYPES if name != NOT_CAST}
    state |= {
        "scalar": torch.tensor(7.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "buffer": torch.nn.Buffer(torch.ones(3)),
    }
    assert_same(saved(tmp_path, state), state)


def test_a_module_s_state_dict(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.LSTM(4, 2))
    assert_same(saved(tmp_path, module.state_dict()), module.state_dict())


def test_views_are_read_from_where_they_lie_in_their_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "rows": base[1:3],
        "transposed": base.t(),
        "columns": base[:, 2:4],
        "steps": base[::2, ::3],
        "permuted": torch.arange(60.0).reshape(3, 4, 5).permute(2, 0, 1),
        "repeated": torch.arange(3.0)[:, None].expand(3, 7),
        "inside": base[2, 3],
    }
    assert_same(saved(tmp_path, state), state)


@pytest.mark.parametrize("start", [0, 1, 7, 500])
def test_rows_of_a_transposed_view_can_be_read_alone(tmp_path: Path, start: int) -> None:
    tensor = torch.arange(700 * 300, dtype=torch.int32).reshape(300, 700).t()
    checkpoint = open_checkpoint(saved(tmp_path, {"w": tensor}))
    layer = checkpoint.layers[0]
    with SourceReader() as reader:
        (values,) = reader.read([(layer, start * 300 + 5, start * 300 + 1000)])
    assert values.tobytes() == tensor_bytes(tensor)[(start * 300 + 5) * 4 : (start * 300 + 1000) * 4]


def test_tied_tensors_are_stored_once_under_the_first_name(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    state = {"embed": weight, "bias": torch.ones(4), "head": weight, "view": weight[:2]}
    path = saved(tmp_path, state)
    assert open_checkpoint(path).aliases == {"head": "embed"}
    assert_same(path, state)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "my_net"])
def test_one_dict_of_tensors_is_found_among_training_state(tmp_path: Path, key: str) -> None:
    state = {"w": torch.ones(2)}
    optimizer = {
        "state": {0: {"exp_avg": torch.ones(2)}},
        "param_groups": [{"betas": (0.9, 0.99), "lr": 1e-3}],
    }
    assert_same(saved(tmp_path, {key: state, "optimizer": optimizer, "epoch": 3, "name": "x"}), state)


def test_settings_beside_tensors_are_left_out(tmp_path: Path) -> None:
    harmless = {
        "step": 3,
        "name": "x",
        "lr": 0.1,
        "shape": torch.Size([2]),
        "kind": torch.float16,
        "l": [1, "a"],
    }
    assert_same(saved(tmp_path, {"w": torch.ones(2), **harmless}), {"w": torch.ones(2)})


class Custom:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def raw_pickle(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


TENSOR = {"w": torch.ones(2)}
REFUSED: dict[str, tuple[Any, str]] = {
    "a call": ({"w": Custom()}, "posix.system"),
    "a module": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    "several dicts": ({"generator": TENSOR, "critic": TENSOR}, "several dicts"),
    "model and ema": ({"model": TENSOR, "ema": TENSOR}, "several dicts"),
    "a dict beside tensors": ({"w": torch.ones(2), "inner": TENSOR}, "'inner'"),
    "a list of tensors": ({"w": torch.ones(2), "list": [torch.ones(2)]}, "'list'"),
    "a tensor alone": (torch.ones(2), "not a dict"),
    "no tensors": ({"a": 1}, "no tensors"),
    "names that are numbers": ({1: torch.ones(2)}, "name"),
    "complex values": ({"w": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    "sparse values": ({"w": torch.eye(3).to_sparse()}, "sparse"),
    "lazy negation": ({"w": torch._neg_view(torch.ones(2))}, "negation"),
    "meta tensors": ({"w": torch.ones(2, device="meta")}, "meta"),
    "bytearray": ({"w": torch.ones(2), "b": bytearray(b"x")}, "bytearray"),
    "endless repetition": ({"w": torch.ones(1).expand(10**6, 10**6, 10**6)}, "repeats"),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*:UserWarning")
@pytest.mark.parametrize(("value", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_state_dict_is_refused_with_the_reason(tmp_path: Path, value: Any, reason: str) -> None:
    path = saved(tmp_path, value)
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        open_checkpoint(path)
    assert caught.value.uri == path


def test_nothing_runs_and_torch_is_not_even_imported_for_a_pickle_that_calls(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.ones(2), "x": Custom()})
    code = f"""
import sys
from arrowquant_dist.checkpoint import torch_private
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.errors import InvalidCheckpoint
try:
    open_checkpoint({path!r})
except InvalidCheckpoint as error:
    sys.exit("torch" in sys.modules)
sys.exit(9)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert done.returncode == 0
    assert not (tmp_path / "pwned").exists()


BOMBS: dict[str, tuple[bytes, str]] = {
    "os.system": (pickle.dumps({"x": Custom()}, protocol=2), "posix.system"),
    "eval": (raw_pickle(b"c__builtin__\neval\n", b"X\x03\x00\x00\x001+1", b"\x85R"), "eval"),
    "bytearray of a TB": (
        raw_pickle(b"c__builtin__\nbytearray\n", b"\x8a\x06\0\0\0\0\0\x01\x85R"),
        "bytearray",
    ),
    "tuple whose hash never ends": (
        raw_pickle(b"K\x01q\x00", *(bytes([104, i, 104, i, 134, 113, i + 1]) for i in range(60))),
        "tuple of over",
    ),
    "protocol 4": (pickle.dumps({"x": "y" * 300}, protocol=4), "protocol"),
    "no pickle": (b"hello", "pickle"),
    "empty": (b"", "pickle"),
    "truncated": (pickle.dumps({"x": "y" * 300}, protocol=2)[:-20], "pickle"),
    "empty stack": (raw_pickle(b"R"), "pickle"),
    "no mark": (raw_pickle(b"t"), "pickle"),
    "unknown memo": (raw_pickle(b"h\x07"), "pickle"),
    "integer of 10,000 bits": (raw_pickle(b"\x8a\xff" + b"\x7f" * 255), "64 bits"),
    "string beyond the end": (raw_pickle(b"X\xff\xff\xff\xff"), "pickle"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("data", "reason"), BOMBS.values(), ids=BOMBS.keys())
def test_a_hostile_pickle_is_refused_before_torch_sees_it(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=reason):
        check_pickle(data, "x.bin")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("data", "reason"), BOMBS.values(), ids=BOMBS.keys())
def test_a_file_with_a_hostile_pickle_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = rezipped(saved(tmp_path, TENSOR), tmp_path, {"data.pkl": data})
    with pytest.raises(InvalidCheckpoint, match=reason):
        open_checkpoint(path)


def test_lists_shared_a_thousand_times_take_no_time(tmp_path: Path) -> None:
    shared: list[Any] = [1]
    for _ in range(60):
        shared = [shared, shared]
    assert_same(saved(tmp_path, {"w": torch.ones(2), "deep": {"list": shared}}), {"w": torch.ones(2)})


def test_a_file_without_byteorder_or_format_version_is_read(tmp_path: Path) -> None:
    left_out: dict[str, bytes | None] = {
        ".format_version": None,
        ".storage_alignment": None,
        "byteorder": None,
    }
    assert_same(rezipped(saved(tmp_path, TENSOR), tmp_path, left_out), TENSOR)


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"byteorder": b"big"}, {}, "big-endian"),
        ({}, {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
        ({"data.pkl": None}, {}, "data.pkl"),
        ({"data/0": None}, {}, "weights_only"),
        ({"data/0": b"1234567"}, {}, "beyond its storage"),
    ],
)
def test_a_changed_archive_is_refused(
    tmp_path: Path, change: dict[str, bytes | None], options: dict[str, Any], reason: str
) -> None:
    path = rezipped(saved(tmp_path, TENSOR), tmp_path, change, **options)
    with pytest.raises(InvalidCheckpoint, match=reason):
        open_checkpoint(path)


def test_torchscript_and_the_old_format_are_refused_with_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("m/constants.pkl", b"")
    with pytest.raises(InvalidCheckpoint, match="TorchScript"):
        open_checkpoint(str(script))
    old = tmp_path / "old.bin"
    torch.save(TENSOR, old, _use_new_zipfile_serialization=False)
    with pytest.raises(InvalidCheckpoint, match=r"before 1\.6"):
        open_checkpoint(str(old))


@pytest.mark.timeout(60)
def test_a_zip_bomb_is_refused_without_inflating_it(tmp_path: Path) -> None:
    path = tmp_path / "bomb.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(200 << 20))
    with pytest.raises(InvalidCheckpoint, match="compressed"):
        open_checkpoint(str(path))


def test_a_file_cut_or_flipped_anywhere_is_one_error_or_the_same_tensors(tmp_path: Path) -> None:
    data = Path(saved(tmp_path, TENSOR)).read_bytes()
    path = tmp_path / "damaged.bin"
    names = set()
    for position in range(1, len(data), 41):
        flipped = bytearray(data)
        flipped[position] ^= 0x55
        for damaged in (data[:position], bytes(flipped)):
            path.write_bytes(damaged)
            try:
                checkpoint = open_checkpoint(str(path))
            except InvalidCheckpoint:
                continue
            names |= {layer.name for layer in checkpoint.layers}
    assert names == {"w"}


def test_a_view_that_leaves_its_storage_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, {"w": torch.arange(8.0)[2:4]})
    with zipfile.ZipFile(source) as archive:
        data = archive.read("pytorch_model/data.pkl")
    found = [p for op, a, p in pickletools.genops(data) if op.name == "BININT1" and a == 2 and p is not None]
    position = found[0]  # the view's offset comes before its shape
    beyond = data[: position + 1] + bytes([200]) + data[position + 2 :]
    with pytest.raises(InvalidCheckpoint, match=r"weights_only|beyond its storage"):
        open_checkpoint(rezipped(source, tmp_path, {"data.pkl": beyond}))


def test_an_ordered_dict_and_a_memory_of_nothing_but_headers(tmp_path: Path) -> None:
    state = OrderedDict((f"layers.{i}.weight", torch.full((3, 2), float(i))) for i in range(50))
    path = saved(tmp_path, state)
    checkpoint = open_checkpoint(path)
    assert [layer.name for layer in checkpoint.layers] == list(state)
    assert all(layer.offset % 64 == 0 for layer in checkpoint.layers)
    assert checkpoint.format == "torch"
    assert_same(path, dict(state))


def test_a_directory_of_a_claimed_terabyte_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(TENSOR, buffer)
    data = bytearray(buffer.getvalue())
    end = data.rindex(b"PK\x06\x06")  # the zip64 end record: size and offset of the directory
    data[end + 40 : end + 56] = struct.pack("<QQ", 1 << 40, 0)
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(data))
    with pytest.raises(InvalidCheckpoint, match="zip"):
        open_checkpoint(str(path))


@pytest.fixture(scope="module")
def archive_records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "t": base.t(), "p": torch.nn.Parameter(torch.ones(2)), "e": torch.zeros(0, 3)}
    with zipfile.ZipFile(saved(folder, {"model": state, "optimizer": {"betas": (0.9, 0.99)}})) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_pickle_is_one_error_or_tensors_inside_the_file(
    tmp_path: Path, archive_records: dict[str, bytes], data: st.DataObject
) -> None:
    pickled = bytearray(archive_records["pytorch_model/data.pkl"])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(pickled) - 1))
        kept = data.draw(st.sampled_from([0, 1]))
        pickled[position : position + 1 - kept] = data.draw(st.binary(max_size=2))
    path = tmp_path / "mutated.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in archive_records.items():
            archive.writestr(name, bytes(pickled) if name.endswith("data.pkl") else record)
    try:
        checkpoint = open_checkpoint(str(path))
    except InvalidCheckpoint:
        return
    sizes = {layer.name: layer.source_nbytes for layer in checkpoint.layers}
    assert {name: len(values) for name, values in read_all(checkpoint).items()} == sizes


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(1, 700), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_mutated_zip_directory_is_one_error_or_tensors_inside_the_file(
    tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(Path(saved(tmp_path, TENSOR)).read_bytes())
    for from_end, byte in edits:
        content[-from_end] = byte
    path = tmp_path / "mutated.bin"
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(str(path))
    except InvalidCheckpoint:
        return
    assert {name: len(values) for name, values in read_all(checkpoint).items()} == {"w": 8}


def test_the_error_says_what_weights_only_says(tmp_path: Path) -> None:
    source = saved(tmp_path, TENSOR)
    path = rezipped(
        source, tmp_path, {"data.pkl": raw_pickle(b"}(", b"X\x01\x00\x00\x00w", b"cmath\nsin\n", b"u")}
    )
    with pytest.raises(InvalidCheckpoint, match=r"math\.sin"):
        open_checkpoint(path)
    path = rezipped(source, tmp_path, {"data.pkl": raw_pickle(b"ctorch\nSize\n", b"K\x01b")})
    with pytest.raises(InvalidCheckpoint, match=r"Can only build Tensor.*safetensors"):
        open_checkpoint(path)


@pytest.mark.parametrize("way", ["public"], indirect=True)
@pytest.mark.parametrize(
    "other", [torch.ones(2, 2), torch.ones(3)[1:], torch.ones(2).half(), {"v": torch.ones(2)}]
)
def test_a_tensor_that_torch_sees_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Any
) -> None:
    path = saved(tmp_path, {"w": torch.ones(2)})
    monkeypatch.setattr(torch, "load", lambda *_arguments, **_options: {"w": other})
    with pytest.raises(InvalidCheckpoint, match="safetensors"):
        open_checkpoint(path)
