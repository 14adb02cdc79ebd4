"""Models that have more parameters, or fewer, than the dataset has layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader, distill
from arrowquant_dist.distillation.lookups import used_as_whole
from tests.distillation.test_distill import FEW, INT2, loss_of_dataset
from tests.evaluation.models import SIZES, TEXTS, VOCABULARY, quantize, save, save_tied_llama

SHORT = replace(FEW, steps=10, every=10)


def save_mixtral(folder: Path) -> Path:
    """Each expert's matrices are layers of their own, of which transformers makes one parameter of all experts."""
    torch.manual_seed(3)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        num_local_experts=3,
        num_experts_per_tok=1,
        num_key_value_heads=2,
        initializer_range=0.3,
        **SIZES,
    )
    return save(MixtralForCausalLM(config), folder)


def changed(folder: Path) -> set[str]:
    """Layers whose codes are others after the training."""
    with (
        WeightLoader(folder / "quantized", dequantize=False) as old,
        WeightLoader(folder / "trained", dequantize=False) as new,
    ):
        return {
            name
            for name in old.keys()  # noqa: SIM118 - a loader gives pairs
            if not (old[name].codes == new[name].codes).all()
        }


def trained_once(save_model: Callable[[Path], Path], folder: Path, config: QuantizationConfig) -> None:
    """And what was written has the loss that the training found, which is less than at its beginning."""
    model = save_model(folder / "model")
    quantize(model, folder / "quantized", config)
    place = model, folder / "quantized", folder / "trained", TEXTS
    found = distill(*place, settings=SHORT, run=RunConfig(engine="inline"))
    assert found.best == 10
    assert found.losses[10] < 0.98 * found.losses[0]
    loss = loss_of_dataset(model, folder / "trained", folder)
    assert loss == pytest.approx(found.losses[10], rel=1e-5)


def test_a_matrix_of_two_parameters_is_trained_as_one(tmp_path: Path) -> None:
    """Of a source in 16 bits, whose values are cast for each use."""
    trained_once(lambda folder: save_tied_llama(folder, torch.bfloat16), tmp_path, INT2)
    assert "model.embed_tokens.weight" in changed(tmp_path)
    with WeightLoader(tmp_path / "trained") as loader:
        assert "lm_head.weight" not in loader


def test_experts_are_trained_each_in_its_own_layer(tmp_path: Path) -> None:
    trained_once(save_mixtral, tmp_path, INT2)
    experts = {name for name in changed(tmp_path) if ".experts." in name}
    assert {name.split(".experts.")[1][0] for name in experts} == {"0", "1", "2"}


def test_an_embedding_that_is_more_than_looked_up_is_told_from_others() -> None:
    """As DeBERTa's of relative positions, of which the whole weight is normalized."""
    positions, words = torch.nn.Embedding(5, 3), torch.nn.Embedding(7, 3)
    ids = torch.tensor([2, 4])
    parameters = {"words": words.weight, "positions": positions.weight, "tied": positions.weight}
    found = used_as_whole(parameters, lambda: words(ids) + positions(ids) + positions.weight.mean())
    assert found == {"positions", "tied"}
