"""Tied weights that safetensors stores twice are stored once; weights that only look tied are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist.checkpoint.open import open_checkpoint
from tests.checkpoint.checkpoint_files import entry, read_all, safetensors_bytes

WEIGHT = torch.randn(3000, 64)  # three 256 KiB samples' worth


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.embed_tokens.weight", "lm_head.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
        ("lm_head.weight", "transformer.wte.weight"),
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("lm_head.bias", "lm_head.decoder.bias"),
        ("output.weight", "tok_embeddings.weight"),
    ],
)
def test_equal_embeddings_and_heads_are_stored_once(tmp_path: Path, first: str, second: str) -> None:
    save_file({first: WEIGHT, second: WEIGHT.clone()}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    stored = checkpoint.layers[0].name
    assert len(checkpoint.layers) == 1
    assert checkpoint.aliases == {({first, second} - {stored}).pop(): stored}


def test_copies_in_different_files_are_found(tmp_path: Path) -> None:
    save_file({"lm_head.weight": WEIGHT}, tmp_path / "a.safetensors")
    save_file({"model.embed_tokens.weight": WEIGHT, "norm": torch.ones(3)}, tmp_path / "b.safetensors")
    assert open_checkpoint(str(tmp_path)).aliases == {"model.embed_tokens.weight": "lm_head.weight"}


@pytest.mark.parametrize("position", [0, 96_000, 191_999])
def test_one_differing_value_keeps_both(tmp_path: Path, position: int) -> None:
    other = WEIGHT.clone()
    other.view(-1)[position] += 1
    save_file({"embed_tokens.weight": WEIGHT, "lm_head.weight": other}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    assert len(checkpoint.layers) == 2
    assert checkpoint.aliases == {}


def test_equal_layers_that_models_do_not_tie_are_kept(tmp_path: Path) -> None:
    same = {
        "q_proj.weight": WEIGHT,
        "k_proj.weight": WEIGHT.clone(),
        "attention.output.weight": WEIGHT.clone(),
    }
    save_file(same, tmp_path / "model.safetensors")
    assert len(open_checkpoint(str(tmp_path)).layers) == 3


def test_equal_bytes_of_another_shape_or_dtype_are_kept(tmp_path: Path) -> None:
    tensors = {
        "embed_tokens.weight": torch.zeros(4, 6),
        "lm_head.weight": torch.zeros(6, 4),
        "shared.weight": torch.zeros(4, 6, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert len(open_checkpoint(str(tmp_path)).layers) == 3


def test_names_of_one_range_are_one_layer(tmp_path: Path) -> None:
    header = {
        "first": entry("U8", [2], 0, 2),
        "same": entry("U8", [2], 0, 2),
        "other": entry("U8", [2], 2, 4),
        "again": entry("U8", [2], 0, 2),
        "empty": entry("U8", [0], 4, 4),
        "empty too": entry("U8", [0], 4, 4),
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, b"abcd"))
    checkpoint = open_checkpoint(str(tmp_path))
    assert read_all(checkpoint) == {"first": b"ab", "other": b"cd", "empty": b"", "empty too": b""}
    assert checkpoint.aliases == {"same": "first", "again": "first"}
