"""Sources with codes whose headers, configs or bytes were changed: `--keep-codes` refuses them in one line, or makes a
sound dataset with the values that the importer decodes."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist import WeightLoader
from arrowquant_dist.checkpoint.open import open_checkpoint
from tests.checkpoint.coded_models import MAKERS
from tests.checkpoint.quantized_models import assert_equal, values_of
from tests.fuzz.mutations import changed_at_random
from tests.fuzz.program import run


def write_changed(folder: Path, random_: random.Random) -> None:
    """A model of any of the formats, of which one thing is another."""
    tensors, quantization = MAKERS[random_.choice([*MAKERS])]("up")
    folder.mkdir()
    path, config = folder / "model.safetensors", folder / "config.json"
    save_file({**{k: t.contiguous() for k, t in tensors.items()}, "norm.weight": torch.ones(8)}, path)
    said = {
        "torch_dtype": random_.choice(["float32", "bfloat16", "float16"]),
        "quantization_config": quantization,
    }
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    how = random_.randrange(5)
    if how == 0:
        said = changed_at_random(said, random_)
    elif how == 1:
        changed = json.dumps(changed_at_random(json.loads(data[8:header]), random_)).encode()
        data[:header] = struct.pack("<Q", len(changed)) + changed
    elif how == 2:
        for _ in range(random_.choice([1, 3])):
            data[random_.randrange(header)] = random_.randrange(256)
    elif how == 3:
        for _ in range(random_.choice([1, 10, 1000])):
            data[random_.randrange(header, len(data))] = random_.randrange(256)
    else:
        del data[random_.randrange(len(data)) :]
    path.write_bytes(data)
    config.write_text(json.dumps(said))


def check(seed: int, folder: Path) -> str:
    write_changed(folder / "source", random.Random(seed))  # noqa: S311
    target = folder / "target"
    ended = run("quantize", str(folder / "source"), str(target), "--keep-codes", "--engine", "inline")
    if ended.code:
        assert ended.code == 2, ended.error
        assert not (target / "manifest.json").exists()
        return "refused"
    expected = values_of(open_checkpoint(str(folder / "source")))
    with WeightLoader(str(target)) as loader:
        found = dict(loader)
    assert {*found} <= {*expected}
    for name, tensor in found.items():
        assert_equal(tensor, expected[name])
    assert run("verify", str(target)).code == 0
    return "accepted"


@pytest.mark.parametrize("seed", range(30))
def test_changed_sources_are_refused_or_right(tmp_path: Path, seed: int) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_changed_sources_are_refused_or_right(tmp_path: Path) -> None:
    ended = set()
    for seed in range(1000, 3000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        ended.add(check(seed, folder))
        shutil.rmtree(folder)
    assert ended == {"accepted", "refused"}
