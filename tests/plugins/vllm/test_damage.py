"""A flipped bit anywhere in a dataset is found when the plugin reads it, and the error names the layer or file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights
from arrowquant_dist.plugins.vllm.codes import coded_weights
from arrowquant_dist.plugins.vllm.folder import ServedAsCodes, write_model_folder
from arrowquant_dist.plugins.vllm.settings import LoadSettings
from arrowquant_dist.plugins.vllm.weights import decoded_weights
from tests.plugins.vllm.test_codes import CASES, config_of, program, save_model
from tests.servers.fixtures import Bucket

BUDGET, WAITING = 16 << 20, 1 << 20
VALUES = ("data", "scales", "zero_points", "chunk_digests")
CASE = "W4 with zero points"


class Served:
    """A dataset in its target, and a folder that vLLM would be given for it. way: decoded, or as codes."""

    def __init__(self, target: str, folder: Path, way: str, storage: dict[str, Any]) -> None:
        self.folder, self.way = folder, way
        self.given = LoadSettings.of({"target": target, "storage_options": storage}, str(folder))

    def taken(self) -> dict[str, torch.Tensor]:
        """Every weight, as a rank that takes all of them has it."""
        opened, found = self.given.open(BUDGET), {}
        weights = (
            decoded_weights(opened, WAITING)
            if self.way == "decoded"
            else coded_weights(self.given, opened, config_of(self.folder), WAITING)
        )
        with weights as pairs:
            for name, lazy in pairs:
                found[name] = torch.empty(lazy.shape, dtype=lazy.dtype)
                found[name].copy_(lazy)
        return found


def quantized(target: str | Path, folder: Path, compression: Any, storage: dict[str, Any]) -> None:
    settings = {"mixed_precision_layers": ["embed", "lm_head"], "scale_dtype": "bfloat16", **CASES[CASE][0]}
    run = RunConfig(compression=compression, storage_options=storage)
    ArrowQuantizer(QuantizationConfig.from_dict(settings), run).quantize(save_model(folder), target)


@contextmanager
def flipped(file: Path, at: int) -> Iterator[None]:
    """One bit of it, for the time being."""
    whole = file.read_bytes()
    file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
    yield
    file.write_bytes(whole)


def local(tmp_path: Path, compression: str, way: str) -> tuple[Served, Path]:
    target, folder = tmp_path / "target", tmp_path / "folder"
    quantized(target, tmp_path / "source", compression, {})
    assert program("vllm", target, folder) == 0
    return Served(str(target), folder, way, {}), target


@pytest.mark.parametrize("way", ["decoded", "codes"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_in_any_value_of_any_layer(compression: str, way: str, tmp_path: Path) -> None:
    served, target = local(tmp_path, compression, way)
    rows = pq.read_table(target / "index.parquet").to_pylist()
    places = [
        (row, row[f"{value}_offset"], row[f"{value}_stored_nbytes"])
        for row in rows
        for value in VALUES
        if row[f"{value}_stored_nbytes"]
    ]
    assert {row["layer_name"] for row, _, _ in places} == {row["layer_name"] for row in rows}
    for number, (row, start, nbytes) in enumerate(places):
        at = start + (0, nbytes // 2, nbytes - 1)[number % 3]
        with flipped(target / row["part"], at), pytest.raises(CorruptWeights) as caught:
            served.taken()
        assert caught.value.layer == row["layer_name"]
        assert str(caught.value.uri).endswith(row["part"])
    served.taken()


@pytest.mark.parametrize("way", ["decoded", "codes"])
def test_in_the_index(way: str, tmp_path: Path) -> None:
    served, target = local(tmp_path, "none", way)
    index = target / "index.parquet"
    for at in range(0, index.stat().st_size, 499):
        with flipped(index, at), pytest.raises(CorruptWeights) as caught:
            served.taken()
        assert str(caught.value.uri).endswith("index.parquet")


def is_or_was(name: str, files: tuple[str, ...]) -> bool:
    """Of a name of which a bit may have been flipped."""
    return any(
        len(file) == len(name) and sum(one != other for one, other in zip(file, name, strict=True)) <= 1
        for file in files
    )


@pytest.mark.parametrize("way", ["decoded", "codes"])
def test_in_what_the_manifest_says_of_weights_and_no_other_changes_them(way: str, tmp_path: Path) -> None:
    """What else it says (when the dataset was made, and of what) is for people and for `verify`."""
    served, target = local(tmp_path, "none", way)
    right, manifest = served.taken(), target / "manifest.json"
    errors = []
    for at in range(0, manifest.stat().st_size, 41):
        with flipped(manifest, at):
            try:
                taken = served.taken()
            except ArrowQuantError as error:
                errors.append(error)
                continue
        assert taken.keys() == right.keys()
        assert all(value.equal(right[name]) for name, value in taken.items())
    assert len(errors) > 20
    named = [
        error for error in errors if "listed in its manifest" not in str(error)
    ]  # a small file's name there
    files = ("manifest.json", "index.parquet", "config.json")
    assert all(is_or_was(Path(str(error.uri)).name, files) for error in named)
    for key in (b'"index"', b'"parts"'):
        at = manifest.read_bytes().index(key) + 2
        with flipped(manifest, at), pytest.raises(CorruptWeights):
            served.taken()


@pytest.mark.parametrize("way", ["decoded", "codes"])
def test_in_an_object_store(way: str, bucket: Bucket, tmp_path: Path) -> None:
    target, folder, storage = f"{bucket.uri}/target", tmp_path / "folder", bucket.storage_options
    quantized(target, tmp_path / "source", "none", storage)
    write_model_folder(target, folder, ServedAsCodes(), RunConfig(storage_options=storage))
    served = Served(target, folder, way, storage)
    served.taken()
    index = bucket.objects.get(f"{target}/index.parquet")
    row = pq.read_table(io.BytesIO(index)).to_pylist()[7]
    for path, at, layer in (
        (row["part"], row["data_offset"] + 100, row["layer_name"]),
        ("index.parquet", 1000, None),
        ("manifest.json", bucket.objects.get(f"{target}/manifest.json").index(b'"index"') + 2, None),
    ):
        whole = bucket.objects.get(f"{target}/{path}")
        damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        bucket.objects.put(f"{target}/{path}", damaged)
        with pytest.raises(CorruptWeights) as caught:
            served.taken()
        assert caught.value.layer == layer
        assert str(caught.value.uri).endswith(path)
        bucket.objects.put(f"{target}/{path}", whole)
