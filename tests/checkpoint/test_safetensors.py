"""safetensors files: the same tensors that the safetensors package reads, or one clear error."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save, save_file

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.dtypes import BY_SAFETENSORS, DTYPES
from arrowquant_dist.errors import InvalidCheckpoint
from tests.checkpoint.checkpoint_files import NOT_CAST, entry, read_all, safetensors_bytes

_deserialize: Any = safetensors.deserialize  # untyped there
ALL_DTYPES = {name: torch.ones(3).to(getattr(torch, name)) for name in DTYPES if name != NOT_CAST}


def open_bytes(folder: Path, data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """{name: (dtype, shape, raw bytes)} of a file with this content."""
    path = folder / "model.safetensors"
    path.write_bytes(data)
    checkpoint = open_checkpoint(str(path))
    values = read_all(checkpoint)
    return {layer.name: (layer.dtype, layer.shape, values[layer.name]) for layer in checkpoint.layers}


def reference(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The same by the safetensors package."""
    return {
        name: (BY_SAFETENSORS[info["dtype"]].name, _as_torch(info), bytes(info["data"]))
        for name, info in _deserialize(data)
    }


def _as_torch(info: dict[str, Any]) -> tuple[int, ...]:
    *lead, last = info["shape"] or [0]
    return (*lead, last // 2) if info["dtype"] == "F4" else tuple(info["shape"])


def test_minilm_has_every_tensor_byte_for_byte() -> None:
    checkpoint = open_checkpoint("minilm")
    assert len(checkpoint.files) == 1
    expected = reference(Path(checkpoint.files[0].uri).read_bytes())
    assert len(expected) == 104
    values = read_all(checkpoint)
    assert {x.name: (x.dtype, x.shape, values[x.name]) for x in checkpoint.layers} == expected
    assert checkpoint.format == "safetensors"
    assert checkpoint.aliases == {}
    assert {"config.json", "tokenizer.json", "vocab.txt", "1_Pooling/config.json", "README.md"} <= set(
        checkpoint.sidecars
    )


def test_every_dtype_scalars_and_empty_tensors_come_through(tmp_path: Path) -> None:
    tensors = {
        **ALL_DTYPES,
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 7),
        "pairs": torch.arange(12, dtype=torch.uint8).reshape(3, 4).view(torch.float4_e2m1fn_x2),
        "empty inside": torch.zeros(3, 0, 2, dtype=torch.int8),
        "many dims": torch.ones(1, 2, 1, 3, 1, 2),
        "名前/../<b>": torch.ones(2),
    }
    data = save(tensors)
    assert open_bytes(tmp_path, data) == reference(data)


def test_layers_are_in_file_order(tmp_path: Path) -> None:
    header = {"late": entry("U8", [3], 2, 5), "early": entry("U8", [2], 0, 2)}
    assert list(open_bytes(tmp_path, safetensors_bytes(header, b"abcde"))) == ["early", "late"]


def test_values_need_not_be_aligned_in_the_file(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    data = safetensors_bytes(header, b"x" + struct.pack("<2f", 1.5, -2.5))
    assert open_bytes(tmp_path, data)["b"][2] == struct.pack("<2f", 1.5, -2.5)


def test_a_header_larger_than_the_first_read_is_read_in_full(tmp_path: Path) -> None:
    tensors = {f"layer.{i}.{'x' * 100}": torch.full((2,), float(i)) for i in range(3000)}
    data = save(tensors)
    assert int.from_bytes(data[:8], "little") > 1 << 18
    assert open_bytes(tmp_path, data) == reference(data)


DEFECTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "empty"),
    "too short": (b"\x02\0\0\0\0\0\0\0{", "too few"),
    "header of 2^63 bytes": (safetensors_bytes({}, length=1 << 63), "100 MB"),
    "header of 100 MB and a byte": (safetensors_bytes({}, length=100_000_001), "100 MB"),
    "header longer than the file": (safetensors_bytes({}, length=50), "cut off"),
    "not UTF-8": (safetensors_bytes(b'{"\xff\xfe":1}'), "JSON"),
    "UTF-16": (safetensors_bytes('{"a":1}'.encode("utf-16")), "safetensors|format"),
    "no JSON": (safetensors_bytes(b'{"a": oops}'), "JSON"),
    "NaN": (safetensors_bytes(b'{"a": NaN}'), "NaN"),
    "a list": (safetensors_bytes(b"[1, 2, 3]"), "begin with|format"),
    "deep lists": (safetensors_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested"),
    "deep objects": (safetensors_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested"),
    "deep but few": (
        safetensors_bytes(b'{"' + b"x" * 30_000 + b'":' + b"[" * 1500 + b"]" * 1500 + b"}"),
        "JSON|not an object",
    ),
    "wide list": (safetensors_bytes(b'{"a":[' + b"1," * 100_000 + b"1]}"), "list of numbers"),
    "endless digits": (safetensors_bytes(b'{"a":' + b"9" * 100_000 + b"}"), "JSON"),
    "no tensors": (safetensors_bytes({"__metadata__": {"format": "pt"}}), "no tensors"),
    "metadata of numbers": (safetensors_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "surrogate in a name": (
        safetensors_bytes(b'{"\\ud800":' + json.dumps(entry("U8", [0], 0, 0)).encode() + b"}"),
        "Unicode",
    ),
    "endless name": (safetensors_bytes({"n" * 10_000: entry("U8", [0], 0, 0)}), "characters"),
    "entry is a number": (safetensors_bytes({"w": 3}), "not an object"),
    "nothing in the entry": (safetensors_bytes({"w": {}}), "dtype"),
    "dtype is a list": (safetensors_bytes({"w": entry([], [1], 0, 4)}, b"1234"), "dtype"),  # type: ignore[arg-type]
    "unknown dtype": (safetensors_bytes({"w": entry("F6_E2M3", [1], 0, 4)}, b"1234"), "'F6_E2M3' is not"),
    "negative size": (safetensors_bytes({"w": entry("F32", [-1], 0, 4)}, b"1234"), "shape"),
    "size is a float": (safetensors_bytes({"w": entry("F32", [1.0], 0, 4)}, b"1234"), "shape"),
    "size is true": (safetensors_bytes({"w": entry("F32", [True], 0, 4)}, b"1234"), "shape"),
    "shape is a string": (safetensors_bytes({"w": entry("F32", "11", 0, 4)}, b"1234"), "shape"),  # type: ignore[arg-type]
    "10^18 values": (
        safetensors_bytes({"w": entry("F32", [10**9, 10**9], 0, 4)}, b"1234"),
        "4000000000000000000",
    ),
    "product beyond 2^64": (
        safetensors_bytes({"w": entry("F32", [2**32, 2**32, 4], 0, 4)}, b"1234"),
        "takes",
    ),
    "product that wraps to 0": (safetensors_bytes({"w": entry("F32", [2**62, 4], 0, 0)}), "takes"),
    "size beyond int64": (safetensors_bytes({"w": entry("F32", [2**64, 0], 0, 0)}), "shape"),
    "65 dimensions": (safetensors_bytes({"w": entry("F32", [1] * 65, 0, 4)}, b"1234"), "64"),
    "one offset": (
        safetensors_bytes({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"),
        "data_offsets",
    ),
    "offsets reversed": (safetensors_bytes({"w": entry("F32", [1], 4, 0)}, b"1234"), "data_offsets"),
    "offsets beyond the file": (
        safetensors_bytes({"w": entry("U8", [10**15], 0, 10**15)}, b"1234"),
        "cut off",
    ),
    "size and offsets disagree": (
        safetensors_bytes({"w": entry("F32", [2], 0, 4)}, b"1234"),
        "takes 8 bytes",
    ),
    "overlap": (
        safetensors_bytes({"v": entry("U8", [3], 0, 3), "w": entry("U8", [2], 2, 4)}, b"1234"),
        "overlap",
    ),
    "one range, two shapes": (
        safetensors_bytes({"v": entry("U8", [2], 0, 2), "w": entry("U8", [1, 2], 0, 2)}, b"12"),
        "layer 'w'.*overlap",
    ),
    "one range, two dtypes": (
        safetensors_bytes({"v": entry("U8", [2], 0, 2), "w": entry("I8", [2], 0, 2)}, b"12"),
        "overlap",
    ),
    "half a byte a row": (
        safetensors_bytes({"w": entry("F4", [2, 3], 0, 3)}, b"123"),
        "not fill whole bytes",
    ),
    "gap": (safetensors_bytes({"v": entry("U8", [1], 0, 1), "w": entry("U8", [2], 2, 4)}, b"1234"), "gap"),
    "gap at the start": (safetensors_bytes({"w": entry("U8", [3], 1, 4)}, b"1234"), "gap"),
    "bytes left over": (
        safetensors_bytes({"w": entry("U8", [3], 0, 3)}, b"1234"),
        "1 byte .* belongs to no tensor",
    ),
    "truncated": (save({"w": torch.ones(100)})[:-1], "cut off"),
    "name twice": (
        safetensors_bytes(
            b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"1",
        ),
        "'w' twice",
    ),
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "git lfs pull",
    ),
}


@pytest.mark.parametrize(("data", "reason"), DEFECTS.values(), ids=DEFECTS.keys())
def test_a_defect_is_one_error_that_names_the_file(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        open_checkpoint(str(path))
    assert caught.value.uri == str(path)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 6000


def test_errors_about_a_tensor_name_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(
        safetensors_bytes({"good": entry("U8", [1], 0, 1), "bad": entry("F32", [9], 1, 5)}, b"12345")
    )
    with pytest.raises(InvalidCheckpoint) as caught:
        open_checkpoint(str(path))
    assert caught.value.layer == "bad"


VALID = save({"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4, dtype=torch.int8)})
HEADER_STOP = 8 + int.from_bytes(VALID[:8], "little")
INTERESTING = b'0123456789-.eE{}[]",: \\abFUIX\x00\xff'


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file with a few bytes of its header or its length replaced, removed or repeated."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, HEADER_STOP - 1))
        action = draw(st.sampled_from(["replace", "interesting", "remove", "insert"]))
        if action == "replace":
            data[position] = draw(st.integers(0, 255))
        elif action == "interesting":
            data[position] = draw(st.sampled_from(list(INTERESTING)))
        elif action == "remove":
            del data[position]
        else:
            data.insert(position, draw(st.sampled_from(list(INTERESTING))))
    return bytes(data)


@st.composite
def random_headers(draw: st.DrawFn) -> bytes:
    """Entries of plausible and absurd numbers, over a few bytes."""
    number = st.sampled_from([0, 1, 2, 3, 4, 8, 2**31, 2**62, 2**63, 2**64, -1, 1.0, True, None])
    some = st.lists(number, max_size=3)
    field = {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F4", "", None]),
        "shape": some,
        "data_offsets": some,
    }
    header: dict[str, Any] = draw(
        st.dictionaries(st.text(max_size=3), st.fixed_dictionaries({}, optional=field), max_size=3)
    )
    return safetensors_bytes(header, bytes(draw(st.integers(0, 8))))


def agrees_with_reference(folder: Path, data: bytes) -> None:
    try:
        ours = open_bytes(folder, data)
    except InvalidCheckpoint:
        return
    try:
        assert ours == reference(data)
    except SafetensorError:  # which knows no tied tensors
        assert open_checkpoint(str(folder / "model.safetensors")).aliases


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutated())
def test_a_mutated_file_reads_as_the_reference_does_or_is_refused(tmp_path: Path, data: bytes) -> None:
    agrees_with_reference(tmp_path, data)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=random_headers())
def test_a_random_header_reads_as_the_reference_does_or_is_refused(tmp_path: Path, data: bytes) -> None:
    agrees_with_reference(tmp_path, data)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=6),
    dtype=st.sampled_from(sorted(ALL_DTYPES)),
    seed=st.integers(0, 99),
)
def test_what_the_package_writes_is_read(
    tmp_path: Path, shapes: list[list[int]], dtype: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    tensors = {
        f"t{i}": torch.from_numpy(random.integers(0, 2, shape)).to(getattr(torch, dtype))
        for i, shape in enumerate(shapes)
    }
    path = tmp_path / "written.safetensors"
    save_file(tensors, path)
    data = path.read_bytes()
    assert open_bytes(tmp_path, data) == reference(data)


def test_the_reference_refuses_damaged_files_too() -> None:
    with pytest.raises(SafetensorError):
        reference(VALID[:-1])
