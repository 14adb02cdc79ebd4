"""Which embeddings count as output heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from arrowquant_dist.sizing.candidates import DATA_FREE, HEAD_TOO, RowSteps
from arrowquant_dist.sizing.embeddings import is_embedding, row_steps_of
from arrowquant_dist.sizing.run import layers_of
from tests.sources import save_checkpoint

TOKENS, PLACES, MATRIX = (
    "model.embed_tokens.weight",
    "model.embed_positions.weight",
    "model.layers.0.mlp.weight",
)
LLAMA = {"architectures": ["LlamaForCausalLM"]}


def steps_of(folder: Path, *more: str, config: Any = LLAMA) -> dict[str, RowSteps | None]:
    """Of a source with two embeddings, a matrix, and `more` of the vocabulary's size."""
    generator = torch.Generator().manual_seed(0)
    sizes = {PLACES: 16, MATRIX: 8, TOKENS: 64} | dict.fromkeys(more, 64)
    source = save_checkpoint(
        folder, {name: torch.randn(rows, 8, generator=generator) for name, rows in sizes.items()}
    )
    if config is not None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    run = RunConfig()
    checkpoint = open_checkpoint(source, run.source_storage)
    plan = make_plan(checkpoint, QuantizationConfig(), run)
    layers = layers_of(plan)
    found = row_steps_of(plan, layers, DATA_FREE, checkpoint, run.source_storage)
    return dict(zip([blocks[0].layer.name for blocks in layers], found, strict=True))


def test_a_head_that_is_not_stored_is_the_embedding_of_most_rows(tmp_path: Path) -> None:
    assert steps_of(tmp_path) == {PLACES: DATA_FREE, MATRIX: None, TOKENS: HEAD_TOO}


@pytest.mark.parametrize(
    "config", [None, {"architectures": ["BertModel"]}, {"architectures": None}, {"architectures": "x"}, []]
)
def test_a_model_without_a_head_has_none_in_its_embeddings(tmp_path: Path, config: Any) -> None:
    assert steps_of(tmp_path, config=config) == {PLACES: DATA_FREE, MATRIX: None, TOKENS: DATA_FREE}


def test_a_head_of_its_own_is_a_matrix_and_leaves_the_embedding_one(tmp_path: Path) -> None:
    found = steps_of(tmp_path, "lm_head.weight")
    assert found == {PLACES: DATA_FREE, MATRIX: None, TOKENS: DATA_FREE, "lm_head.weight": None}


def test_a_head_that_the_source_ties_by_name_is_the_embedding(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(64, 8, generator=generator)
    torch.save({TOKENS: shared, "lm_head.weight": shared}, tmp_path / "pytorch_model.bin")
    run = RunConfig()
    checkpoint = open_checkpoint(str(tmp_path), run.source_storage)
    plan = make_plan(checkpoint, QuantizationConfig(), run)
    assert plan.aliases
    found = row_steps_of(plan, layers_of(plan), DATA_FREE, checkpoint, run.source_storage)
    assert found == [HEAD_TOO]


def test_a_config_that_is_no_json_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"config\.json"):
        steps_of(tmp_path, config="{")


def test_an_output_head_is_a_matrix_unless_it_is_the_embedding() -> None:
    assert not is_embedding("lm_head.weight")
    assert not is_embedding("output.weight")
    assert is_embedding("lm_head.weight", ["model.embed_tokens.weight"])
    assert is_embedding("tok_embeddings.weight")
