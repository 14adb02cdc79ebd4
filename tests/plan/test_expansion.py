"""A source whose layers are far larger than its files is refused, unless the config trusts it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig
from arrowquant_dist.plan import make_plan
from arrowquant_dist.plan.check import check_expansion

MIB, GIB = 1 << 20, 1 << 30
FITS = nullcontext()
REFUSED = pytest.raises(InvalidCheckpoint, match="max_expansion")


def views_of_nothing(path: Path, count: int) -> str:
    """`count` tensors of nearly a GiB each, views of four bytes with strides of 0."""
    value = torch.ones(1)
    torch.save({f"layer{i}": value.as_strided((16384 - i, 16384), (0, 0)) for i in range(count)}, path)
    return str(path)


def test_views_without_strides_are_refused_by_their_sum(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(views_of_nothing(tmp_path / "x.bin", 54))
    assert sum(file.nbytes for file in checkpoint.files) < 40_000
    with pytest.raises(
        InvalidCheckpoint,
        match=r"take 54 GiB, more than 64 times .*layer0, layer1, .* and 49 more",
    ):
        make_plan(checkpoint, QuantizationConfig(), RunConfig())


def test_the_config_can_trust_a_source(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(views_of_nothing(tmp_path / "x.bin", 2))
    plan = make_plan(checkpoint, QuantizationConfig(), RunConfig(max_expansion=10_000_000))
    same = make_plan(checkpoint, QuantizationConfig(), RunConfig(max_expansion=20_000_000))
    assert plan.fingerprint == same.fingerprint
    with pytest.raises(InvalidConfig, match="max_expansion: must be from 1"):
        RunConfig(max_expansion=0)


@pytest.mark.parametrize(
    ("file_nbytes", "layer_nbytes", "most", "ended"),
    [
        (1 * GIB, 32 * GIB, 64, FITS),
        (1 * GIB, 64 * GIB + 256 * MIB, 64, FITS),
        (1 * GIB, 64 * GIB + 256 * MIB + 8, 64, REFUSED),
        (1 * GIB, 2 * GIB, 1, REFUSED),
        (100, 256 * MIB, 64, FITS),
        (100, 257 * MIB, 64, REFUSED),
    ],
)
def test_the_limit_is_a_multiple_of_the_files_and_a_constant(
    file_nbytes: int, layer_nbytes: int, most: int, ended: AbstractContextManager[Any]
) -> None:
    layers = tuple(Layer(name, (layer_nbytes // 8,), "float32", "x", 0, 0) for name in "ab")
    checkpoint = Checkpoint("x", "torch", layers, (SourceFile("x", file_nbytes, ""),))
    with ended:
        check_expansion(checkpoint, most)


def test_layers_of_several_files_count_together() -> None:
    layers = tuple(Layer(f"l{i}", (64 * MIB,), "float32", f"x{i}", 0, 0) for i in range(100))
    files = tuple(SourceFile(f"x{i}", MIB, "") for i in range(100))
    with pytest.raises(InvalidCheckpoint, match="25 GiB, more than 64 times the 100 MiB"):
        check_expansion(Checkpoint("x", "torch", layers, files), 64)
