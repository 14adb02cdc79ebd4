"""What a model makes of the rows of its embeddings, E[g gᵀ] of torch's own gradients, is in the statistics of layers
that are quantized by it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AlbertModel, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader, calibrate
from arrowquant_dist.config import LayerOverride, Storage
from arrowquant_dist.models import sensitivity
from arrowquant_dist.models.pair import opened_model
from arrowquant_dist.models.subject import Subject
from tests.calibration.reference import read
from tests.evaluation.models import SIZES, TEXTS, VOCABULARY, save, save_bert, save_llama

SOME = [*TEXTS[::3]]
EMBEDDING = "model.embed_tokens.weight"
INLINE = RunConfig(engine="inline")
COUNTED = LayerOverride("model.embed_tokens", "int8", method="counted", step=0.2, row_exponent=0.2, rate=0.1)
GPTQ = LayerOverride("model.embed_tokens", "int2", method="gptq")


def found_of(source: Path) -> dict[str, np.ndarray]:
    with opened_model(source, Storage(), 1 << 30) as opened:
        subject = Subject.of(opened)
        return sensitivity.row_sensitivities(subject, subject.tokens(SOME))


@contextmanager
def looked_up(model: torch.nn.Module, name: str) -> Iterator[list[torch.Tensor]]:
    """What a module gives, as what gradients are asked of."""
    made: list[torch.Tensor] = []

    def hook(_module: torch.nn.Module, _args: Any, result: torch.Tensor) -> torch.Tensor:
        made.append(result.detach().requires_grad_())
        return made[-1].clone()

    handle = model.get_submodule(name).register_forward_hook(hook)
    yield made
    handle.remove()


def by_torch(model: torch.nn.Module, source: Path, name: str) -> np.ndarray:
    """Of the sum of all that the last block makes."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    gradients = []
    for text in SOME:
        with looked_up(model, name) as rows:
            result = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
            result.hidden_states[-1].sum().backward()
        assert rows[0].grad is not None
        gradients.append(rows[0].grad[0])
    every = torch.cat(gradients).double().numpy()
    return np.asarray(every.T @ every / len(every))


@pytest.fixture
def ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the sum of all, and no random one."""
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.ones(shape))


@pytest.mark.usefixtures("ones")
def test_it_is_that_of_the_gradients_of_what_the_blocks_make(tmp_path: Path) -> None:
    source = save_bert(tmp_path / "source", initializer_range=0.05)
    found, model = found_of(source), AutoModel.from_pretrained(source)
    assert {*found} == {f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
    expected = by_torch(model, source, "embeddings.word_embeddings")
    np.testing.assert_allclose(
        found["embeddings.word_embeddings.weight"], expected, atol=1e-4 * expected.max()
    )


@pytest.mark.usefixtures("ones")
def test_of_deeper_models_the_first_blocks_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_llama(tmp_path / "source")
    monkeypatch.setattr(sensitivity, "_BLOCKS", 1)
    found = found_of(source)[EMBEDDING]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.model.layers = model.model.layers[:1]
    model.model.norm = torch.nn.Identity()
    expected = by_torch(model, source, "model.embed_tokens")
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_less_memory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer texts go through the blocks together, and meet the same random results."""
    source = save_llama(tmp_path / "source")
    found = found_of(source)[EMBEDDING]
    monkeypatch.setattr(sensitivity, "_GROUP", 100)
    assert np.array_equal(found_of(source)[EMBEDDING], found)


def test_few_texts_for_so_many_columns_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_bert(tmp_path / "source")
    monkeypatch.setattr(sensitivity, "_LEAST_A_COLUMN", 1000)
    assert found_of(source) == {}


def test_of_a_model_without_a_chain_of_blocks_there_is_none(tmp_path: Path) -> None:
    config = AlbertConfig(vocab_size=VOCABULARY, embedding_size=16, **SIZES)
    assert found_of(save(AlbertModel(config), tmp_path / "source")) == {}


@pytest.mark.parametrize("override", [COUNTED, GPTQ], ids=lambda override: override.method)
def test_embeddings_have_it_in_the_statistics_and_are_quantized_by_it(
    override: LayerOverride, tmp_path: Path
) -> None:
    table = QuantizationConfig(overrides=[override], hessians="elsewhere")
    source, out = save_llama(tmp_path / "source"), tmp_path / "out"
    done = calibrate(source, out, SOME, quantize=table)
    parts, squares = {layer.name: layer.parts for layer in done.layers}, found_of(source)[EMBEDDING]
    assert parts[EMBEDDING] == ("counts", "sensitivity")
    assert not any("sensitivity" in parts[name] for name in parts if name != EMBEDDING)
    assert np.array_equal(read(out)[f"{EMBEDDING}.sensitivity"], squares)
    assert not any("rounded without regard" in note for note in done.notes)

    config = table.replace(hessians=str(out))
    ArrowQuantizer(config, INLINE).quantize(source, tmp_path / "with")
    for path in out.glob("*.safetensors"):
        tensors = {name: value for name, value in load_file(path).items() if "sensitivity" not in name}
        save_file(tensors, path)
    ArrowQuantizer(config, INLINE).quantize(source, tmp_path / "without")
    original = load_file(source / "model.safetensors")[EMBEDDING].double()
    found, plain = (
        WeightLoader(tmp_path / name)[EMBEDDING].double() - original for name in ("with", "without")
    )
    g = torch.from_numpy(squares).double()
    done_by, before = (float(torch.einsum("ri,ij,rj", error, g, error)) for error in (found, plain))
    assert done_by < 0.8 * before


@pytest.mark.parametrize(
    ("override", "changed", "name", "to", "why"),
    [
        (
            COUNTED,
            sensitivity,
            "_LEAST_A_COLUMN",
            100,
            r"the texts have \d+ tokens, but 32 columns need at least 3200",
        ),
        (
            GPTQ,
            LlamaDecoderLayer,
            "forward",
            torch.no_grad()(LlamaDecoderLayer.forward),
            "torch finds no finite gradients for them",
        ),
    ],
    ids=["few texts", "no gradients"],
)
def test_layers_that_lack_it_are_named_with_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: LayerOverride,
    changed: object,
    name: str,
    to: object,
    why: str,
) -> None:
    monkeypatch.setattr(changed, name, to)
    table = QuantizationConfig(overrides=[override], hessians="elsewhere")
    done = calibrate(save_llama(tmp_path / "source"), tmp_path / "out", SOME, quantize=table)
    assert {layer.name: layer.parts for layer in done.layers}[EMBEDDING] == ("counts",)
    (note,) = (note for note in done.notes if EMBEDDING in note)
    start = f"rows of {EMBEDDING} are rounded without regard to their effect in the model: "
    assert re.fullmatch(re.escape(start) + why, note)


def test_one_without_such_layers_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "row_sensitivities", None)
    source, out = save_llama(tmp_path / "source"), tmp_path / "out"
    done = calibrate(source, out, SOME, quantize=QuantizationConfig("int4", group_size=16, per_channel=False))
    assert {part for layer in done.layers for part in layer.parts} <= {
        "counts",
        "hessian",
        "cross",
        "residual",
    }
