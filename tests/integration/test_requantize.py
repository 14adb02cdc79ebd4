"""Datasets and PyTorch files as sources give the dataset that the safetensors file would have given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from tests.datasets import weights_of
from tests.integration.layers import cosine, read_layers
from tests.integration.program import run
from tests.integration.v1 import write_v1

INT8 = QuantizationConfig("int8")
INT2 = QuantizationConfig("int2", per_channel=False, group_size=128, symmetric=False)


def test_an_int8_dataset_is_a_source_for_int2(int8: Path, tmp_path: Path, minilm: Path) -> None:
    target, direct = tmp_path / "int2", tmp_path / "direct"
    done = run("quantize", int8, target, "--quant", "int2", "--group-size", 128, "--asymmetric", "--json")
    assert done.returncode == 0, done.stderr
    ArrowQuantizer(INT2).quantize(str(minilm), str(direct))
    through_int8, straight = read_layers(target), read_layers(direct)
    assert {n: x.quant_type for n, x in through_int8.items()} == {
        n: x.quant_type for n, x in straight.items()
    }
    for name, layer in through_int8.items():
        if layer.quant_type == "int2":
            # The rounding to int8 first is far smaller than that to 2 bits.
            assert cosine(layer.values, straight[name].values) > 0.98
        else:
            np.testing.assert_array_equal(layer.values, straight[name].values)
    source = json.loads((target / "manifest.json").read_text())["source"]
    assert source["format"] == "v2"
    assert (target / "config.json").read_bytes() == (minilm / "config.json").read_bytes()


def test_int8_of_int8_is_the_same_codes(int8: Path, tmp_path: Path) -> None:
    target = tmp_path / "again"
    ArrowQuantizer(INT8).quantize(str(int8), str(target))
    before, after = weights_of(int8), weights_of(target)
    assert {key: data for key, (data, _, _) in after.items()} == {
        k: data for k, (data, _, _) in before.items()
    }


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_a_v1_dataset_gives_what_the_checkpoint_gives(
    int8: Path, tmp_path: Path, weights: dict[str, np.ndarray], *, as_folder: bool
) -> None:
    folder, target = tmp_path / "v1", tmp_path / "int8"
    folder.mkdir()
    names = list(weights)
    first = names[:50] if as_folder else names
    write_v1(folder / "a.parquet", {name: weights[name] for name in first})
    if as_folder:
        write_v1(folder / "b.parquet", {name: weights[name] for name in names[50:]})
    ArrowQuantizer(INT8).quantize(str(folder if as_folder else folder / "a.parquet"), str(target))
    assert weights_of(target) == weights_of(int8)


@pytest.mark.parametrize("is_sharded", [False, True], ids=["one file", "sharded"])
def test_a_pytorch_file_gives_what_the_checkpoint_gives(
    int8: Path, tmp_path: Path, weights: dict[str, np.ndarray], *, is_sharded: bool
) -> None:
    folder, target = tmp_path / "bin", tmp_path / "int8"
    folder.mkdir()
    tensors = {name: torch.from_numpy(weight.copy()) for name, weight in weights.items()}
    if is_sharded:
        _save_sharded(folder, tensors)
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    ArrowQuantizer(INT8).quantize(str(folder), str(target))
    assert weights_of(target) == weights_of(int8)


def _save_sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = list(tensors)
    files = {
        "pytorch_model-00001-of-00002.bin": names[:40],
        "pytorch_model-00002-of-00002.bin": names[40:],
    }
    for file, chosen in files.items():
        torch.save({name: tensors[name] for name in chosen}, folder / file)
    weight_map = {name: file for file, chosen in files.items() for name in chosen}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def test_blocks_and_shards_change_nothing_but_the_files(
    int8: Path, minilm: Path, tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    target = tmp_path / "blocks"
    sizes = RunConfig(block_bytes=512 << 10, shard_bytes=4 << 20, compression="none")
    ArrowQuantizer(INT8, sizes).quantize(str(minilm), str(target))
    assert len(weights_of(target)) > len(weights)
    whole, cut = read_layers(int8), read_layers(target)
    for name, layer in whole.items():
        np.testing.assert_array_equal(cut[name].values, layer.values)


def test_bare_parts_are_a_source_too(int8: Path, tmp_path: Path) -> None:
    folder, target = tmp_path / "parts", tmp_path / "again"
    shutil.copytree(int8 / "weights", folder)
    ArrowQuantizer(INT8).quantize(str(folder), str(target))
    assert {k: v[0] for k, v in weights_of(target).items()} == {k: v[0] for k, v in weights_of(int8).items()}
