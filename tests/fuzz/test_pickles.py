"""Hostile pickles are refused before they are loaded, or loaded in time and memory linear in their size."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.pickle_scan import check_pickle
from arrowquant_dist.errors import InvalidCheckpoint
from tests.conftest import CHECKOUT
from tests.fuzz import pickles
from tests.fuzz.bounded import MAX_RESIDENT_NBYTES

# What torch loads as it is, or refuses by itself, in no time: all others never get that far.
HARMLESS = {"giant_shape", "giant_storage", "cycle", "deep", "shuffled", "huge_argument", "wrong_arguments"}
_OPEN_ALL = """
import sys
from pathlib import Path
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.machine import peak_memory_nbytes
from tests.fuzz.pickles import hostile_pickles, torch_file
path = Path(sys.argv[1])
for name, data in hostile_pickles(int(sys.argv[2]), int(sys.argv[3])):
    path.write_bytes(torch_file(data))
    try:
        layers = open_checkpoint(str(path)).layers
        assert sum(layer.nbytes for layer in layers) <= 16 * len(layers), name
    except InvalidCheckpoint as error:
        assert len(str(error)) < 1000, name
print(peak_memory_nbytes())
"""


@pytest.mark.parametrize("kind", sorted(pickles.KINDS.keys() - HARMLESS))
@pytest.mark.parametrize("seed", range(4))
def test_what_costs_more_than_its_size_is_refused_before_it_is_loaded(kind: str, seed: int) -> None:
    data = pickles.KINDS[kind](random.Random(seed))  # noqa: S311
    with pytest.raises(InvalidCheckpoint) as caught:
        check_pickle(data, "x.bin")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "count", [len(pickles.KINDS), pytest.param(200, marks=pytest.mark.slow)], ids=["quick", "many"]
)
def test_hostile_files_are_one_error_or_layers_within_their_storages(tmp_path: Path, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OPEN_ALL, str(tmp_path / "x.bin"), "7", str(count)],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < MAX_RESIDENT_NBYTES


def test_what_torch_writes_is_read_beside_all_it_may_have(tmp_path: Path) -> None:
    module = torch.nn.TransformerEncoderLayer(16, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 3, 16)).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "settings": {
            "size": torch.Size([1, 2]),
            "bytes": b"abc\xff" * 1000,
            "complex": 1 + 2j,
            "set": {1, "a"},
            "device": torch.device("cuda:0"),
            "dtype": torch.float32,
            "layout": torch.strided,
            "big": 2**62,
            "pairs": {(1, 2): "x", (3, "y"): None},
            "nested": [[(), [{}]]],
            "epoch": 3,
            "name": "x" * 300,
        },
    }
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    parameter.tag = "kept"  # type: ignore[attr-defined]
    weights = {**module.state_dict(keep_vars=True), "tagged": parameter, "step": torch.tensor(3)}
    path = tmp_path / "training.pt"
    torch.save({"state_dict": weights, **beside}, path)
    layers = {layer.name: layer.shape for layer in open_checkpoint(str(path)).layers}
    assert layers == {name: tuple(tensor.shape) for name, tensor in weights.items()}


@pytest.mark.parametrize("count", [1, 100, 20_000])
def test_what_torch_writes_is_far_from_every_limit(count: int) -> None:
    """Counted where it is tightest: tensors that are views of one storage, with the shortest names there are."""
    shared = torch.zeros(count)
    data = pickles.pickle_of({str(i): shared[i] for i in range(count)})
    check_pickle(data, "x.bin")
    assert len(data) > 2 * 24 * count
