"""The target as a model: opened by transformers, filled by WeightLoader, and how good its outputs still are."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from arrowquant_dist import WeightLoader
from arrowquant_dist.errors import ModelMismatch
from tests.guides import TEXTS as GUIDES
from tests.integration.conftest import Targets
from tests.integration.layers import read_layers

ROWS = re.findall(r"^\| `([\w-]+)\.yaml` \|.*\| ([\d.]+) \|$", GUIDES["README.md"], re.MULTILINE)
TEXTS = [
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sun by the window.",
    "Quarterly revenue grew by eight percent, less than analysts had expected.",
    "def add(a, b): return a + b",
    "Der Zug nach Bergen fährt um sieben Uhr ab.",
    "How do I reset the password of my account?",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "¿Dónde está la biblioteca más cercana?",
]


def embeddings(model: Any, folder: Path) -> torch.Tensor:
    """Mean-pooled, normalized sentence embeddings [texts, 384], as the model's card says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def load(target: Path, **options: Any) -> Any:
    """A model of the target's own config, made without memory and filled from the target."""
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(target))
    with WeightLoader(str(target), **options) as loader:
        loader.load_into(model)
    return model


@pytest.fixture(scope="module")
def original(minilm: Path) -> torch.Tensor:
    return embeddings(AutoModel.from_pretrained(minilm), minilm)


def cosines(model: Any, target: Path, original: torch.Tensor) -> torch.Tensor:
    return (embeddings(model, target) * original).sum(1)


@pytest.fixture(scope="module")
def mean_cosine(targets: Targets, original: torch.Tensor) -> Callable[[str], float]:
    """Of MiniLM's dataset by a config."""

    @cache
    def found(config: str) -> float:
        return float(cosines(load(targets[config]), targets[config], original).mean())

    return found


def test_a_meta_model_filled_from_int8_embeds_as_the_original(int8: Path, original: torch.Tensor) -> None:
    model = load(int8)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    found = cosines(model, int8, original)
    assert found.min() > 0.99
    assert found.mean() > 0.998


@pytest.mark.parametrize(("config", "least"), [("int4", 0.9), ("mixed", 0.998)])
def test_other_configs_embed_as_well_as_they_should(
    mean_cosine: Callable[[str], float], config: str, least: float
) -> None:
    assert mean_cosine(config) > least


def test_weights_cosine_is_not_accuracy(mean_cosine: Callable[[str], float]) -> None:
    """What the report warns of: at 2 bits a weight cosine of 0.93 is a model that has lost its way."""
    assert mean_cosine("int2") < 0.9


@pytest.mark.parametrize(("config", "shown"), ROWS)
def test_the_last_column_of_the_readme_s_table_is_what_comes_out(
    mean_cosine: Callable[[str], float], config: str, shown: str
) -> None:
    assert mean_cosine(config) == pytest.approx(float(shown), abs=0.6 * 10 ** -len(shown.partition(".")[2]))


def test_a_model_in_memory_is_filled_in_place_and_in_its_own_dtype(
    int8: Path, minilm: Path, original: torch.Tensor
) -> None:
    model = AutoModel.from_pretrained(minilm, dtype=torch.bfloat16)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with WeightLoader(str(int8), memory_budget="96MiB") as loader:
        loader.load_into(model)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert cosines(model.float(), int8, original).min() > 0.99


def test_parameters_are_the_decoded_weights(int8: Path) -> None:
    model, layers = load(int8), read_layers(int8)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            parameter.detach().numpy(), layers[name].values, rtol=1e-6, atol=1e-9, err_msg=name
        )


def test_another_model_is_refused_before_anything_is_read(int8: Path) -> None:
    config = AutoConfig.from_pretrained(int8)
    config.hidden_size = 192
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    with WeightLoader(str(int8)) as loader, pytest.raises(ModelMismatch, match="shape"):
        loader.load_into(model, strict=False)
    assert all(p.is_meta for p in model.parameters())


def test_the_tokenizer_comes_along(int8: Path, minilm: Path) -> None:
    ours, theirs = AutoTokenizer.from_pretrained(int8), AutoTokenizer.from_pretrained(minilm)
    assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
