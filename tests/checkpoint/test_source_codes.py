"""What planning reads of codes that are to be kept: the order of groups, and only as many zero points as necessary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.source_codes import find_codes
from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.encodings.gptq import Gptq
from arrowquant_dist.errors import InvalidCheckpoint
from tests.checkpoint.quantized_models import save_model
from tests.checkpoint.word_models import Words

CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 32}


class Read:
    """A source of one file, and how many bytes of it were read."""

    def __init__(self, file: Path) -> None:
        self._bytes = np.fromfile(file, np.uint8)
        self.nbytes = 0

    def read_into(self, _uri: str, offset: int, out: np.ndarray) -> None:
        out[:] = self._bytes[offset : offset + out.size]
        self.nbytes += out.size

    def dataset(self, uri: str) -> NoReturn:
        raise AssertionError(uri)


def coded(checkpoint: Checkpoint) -> Layer:
    return next(layer for layer in checkpoint.layers if layer.name == "a.weight")


def test_zero_points_are_read_until_one_is_not_in_the_middle(tmp_path: Path) -> None:
    """Of 8 MiB in pieces of 1 MiB: all where they are, one piece where the first is not."""
    made = Words.random((16384, 32), 4, 32)
    zeros = torch.full((1024, 2048), 0x77777777, dtype=torch.int32)
    tensors = made.gptq()
    tensors["a.qweight"] = torch.zeros(4096, 16384, dtype=torch.int32)
    tensors["a.scales"] = torch.ones(1024, 16384, dtype=torch.float16)
    tensors["a.g_idx"] = torch.arange(32768, dtype=torch.int32) // 32
    for name, first, expected in (("middle", 0x77777777, 8), ("other", 0x77777776, 1)):
        zeros[0, 0] = first
        checkpoint = save_model(tmp_path / name, {**tensors, "a.qzeros": zeros.clone()}, CONFIG)
        layer, read = coded(checkpoint), Read(tmp_path / name / "model.safetensors")
        spec = layer.encoding.kept_spec(layer, read)
        assert isinstance(spec, QuantSpec)
        assert spec.symmetric == (name == "middle")
        assert read.nbytes == 4 * 32768 + (expected << 20)


def test_layers_without_codes_or_values_are_not_among_them(tmp_path: Path) -> None:
    made = Words.random((64, 96), 4, 32)
    rest = {"norm": torch.ones(4), "empty": torch.empty(0, 4), "head.weight": torch.ones(4, 4)}
    found = find_codes(save_model(tmp_path, {**made.gptq(), **rest}, CONFIG))
    assert [*found] == ["a.weight"]


def test_places_beyond_the_file_are_refused_before_memory_is_taken_for_them(tmp_path: Path) -> None:
    made = Words.random((64, 96), 4, 32)
    save_file({name: tensor.contiguous() for name, tensor in made.gptq().items()}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "m.safetensors"))
    layer = coded(checkpoint)
    assert isinstance(layer.encoding, Gptq)
    assert layer.encoding.g_idx is not None
    beyond = replace(layer.encoding.g_idx, shape=(1 << 40,))
    forged = replace(layer, encoding=replace(layer.encoding, g_idx=beyond))
    with pytest.raises(InvalidCheckpoint, match=r"a\.weight.*outside the file"):
        find_codes(replace(checkpoint, layers=(forged,)))
