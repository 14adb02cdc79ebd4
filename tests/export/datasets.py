"""Makes datasets that tests export, and reads outputs with the safetensors package alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.driver import quantize
from tests.sources import save_checkpoint

INT4 = QuantizationConfig("int4", per_channel=False, group_size=64)
SMALL_BLOCKS = RunConfig(block_bytes=64 << 10, shard_bytes=256 << 10)


def made_dataset(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: QuantizationConfig = INT4,
    run: RunConfig = SMALL_BLOCKS,
    side_files: Mapping[str, bytes] | None = None,
) -> str:
    """Makes `folder`/dataset from these tensors, by default with row blocks of 64 KiB, and returns it."""
    source = save_checkpoint(folder / "source", tensors)
    for path, data in ({"config.json": b'{"a": 1}'} if side_files is None else side_files).items():
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / path).write_bytes(data)
    quantize(source, str(folder / "dataset"), config, run)
    return str(folder / "dataset")


def flip(dataset: str, layer: str) -> str:
    """Flips one bit in the values of a row block of the layer; returns the path of the part."""
    block = Dataset.open(dataset).layers[layer].blocks[-1]
    assert block.ranges is not None
    part = Path(dataset) / block.path
    data = bytearray(part.read_bytes())
    data[block.ranges.data.offset + block.ranges.data.stored_nbytes // 2] ^= 4
    part.write_bytes(data)
    return str(part)


def loaded(dataset: str) -> dict[str, torch.Tensor]:
    """The tensors of every name of the dataset, read by our loader."""
    with WeightLoader(dataset) as loader:
        return dict(loader)


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    """The tensors of all safetensors files in the top folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(out.glob("*.safetensors")):
        tensors = load_file(file)
        assert not found.keys() & tensors.keys(), "a tensor is there twice"
        found |= tensors
    return found


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name])
        for name in expected
    )
