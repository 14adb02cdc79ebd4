"""What transformers' own methods, and those of a user, do to a model whose weights are codes."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from arrowquant_dist import WeightLoader, load_codes_into, load_model
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules import QuantWeight
from tests.models.test_codes import SIZES, config_of, llama, output, target_of


def tied(folder: Path) -> Any:
    target = target_of(llama(tie_word_embeddings=True), folder, config_of("int4"))
    return load_model(target, AutoModelForCausalLM, codes=True)


def filled(folder: Path) -> Any:
    """By load_codes_into, of a model that was made of the config."""
    target = target_of(llama(tie_word_embeddings=True), folder, config_of("int4"))
    model = llama(tie_word_embeddings=True)
    load_codes_into(model, WeightLoader(target))
    return model


def unpickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


@pytest.mark.parametrize("loaded", [tied, filled])
@pytest.mark.parametrize(
    "copied", [lambda model: model, copy.deepcopy, unpickled], ids=["itself", "copy", "pickle"]
)
@pytest.mark.parametrize("recompute", [True, False])
def test_weights_that_were_untied_are_tied_again(
    tmp_path: Path,
    loaded: Callable[[Path], Any],
    copied: Callable[[Any], Any],
    recompute: bool,  # noqa: FBT001
) -> None:
    model = loaded(tmp_path)
    expected = output(model)
    model = copied(model)
    model.lm_head.weight = copy.deepcopy(model.lm_head.weight)
    model.lm_head.weight.codes.zero_()
    assert not torch.equal(output(model), expected)
    model.tie_weights(recompute_mapping=recompute)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(output(model), expected)


def test_init_weights_and_tie_weights_leave_tied_codes_as_they_are(tmp_path: Path) -> None:
    model = tied(tmp_path)
    expected, keys = output(model), dict(model.all_tied_weights_keys)
    model.tie_weights()
    model.init_weights()
    assert torch.equal(output(model), expected)
    assert model.all_tied_weights_keys == keys == {"lm_head.weight": "model.embed_tokens.weight"}


def test_biases_that_are_tied_beside_codes_are_tied_as_ever(tmp_path: Path) -> None:
    """BERT ties the decoder's bias to another one: parameters, beside weights of codes."""
    target = target_of(BertForMaskedLM(BertConfig(**SIZES)), tmp_path, config_of("int4"))
    model = load_model(target, AutoModelForMaskedLM, codes=True)
    decoder = model.cls.predictions.decoder
    decoder.bias = torch.nn.Parameter(torch.ones(96))
    model.tie_weights()
    assert decoder.bias is model.cls.predictions.bias
    assert decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert isinstance(decoder.weight, QuantWeight)


def test_three_that_share_one_embedding_are_tied(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 96}
    source = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    model = load_model(target_of(source, tmp_path, config_of("int4")), T5ForConditionalGeneration, codes=True)
    model.encoder.embed_tokens.weight = copy.deepcopy(model.shared.weight)
    model.decoder.embed_tokens.weight = copy.deepcopy(model.shared.weight)
    model.tie_weights()
    owners = (model.encoder.embed_tokens, model.decoder.embed_tokens, model.lm_head)
    assert all(owner.weight is model.shared.weight for owner in owners)


@pytest.mark.parametrize("values", ["lm_head", "model.embed_tokens"])
def test_codes_and_values_are_not_tied_to_each_other(tmp_path: Path, values: str) -> None:
    model = tied(tmp_path)
    new = torch.nn.Linear(32, 96, bias=False) if values == "lm_head" else torch.nn.Embedding(96, 32)
    model.set_submodule(values, new)
    with pytest.raises(InvalidConfig, match=r"lm_head\.weight has .*tie_word_embeddings=False.*codes=True"):
        model.tie_weights()
    assert model.get_submodule(values) is new
    assert isinstance(new.weight, torch.nn.Parameter)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_parameters_are_counted_as_those_of_the_decoded_model(
    tmp_path: Path,
    tie: bool,  # noqa: FBT001
    exclude: bool,  # noqa: FBT001
) -> None:
    target = target_of(llama(tie_word_embeddings=tie), tmp_path, config_of("int2"))
    ours, theirs = (load_model(target, AutoModelForCausalLM, codes=codes) for codes in (True, False))
    count = theirs.num_parameters(exclude_embeddings=exclude)
    assert ours.num_parameters(exclude_embeddings=exclude) == count
    assert ours.model.num_parameters() == theirs.model.num_parameters()
    norms = 5 * 32
    assert ours.num_parameters(only_trainable=True) == norms


def test_a_footprint_is_of_the_codes(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    ours, theirs = (load_model(target, AutoModelForCausalLM, codes=codes) for codes in (True, False))
    codes = sum(
        weight.nbytes + weight.form.nbytes for weight in ours.modules() if isinstance(weight, QuantWeight)
    )
    decoded = sum(weight.numel() * 4 for weight in ours.modules() if isinstance(weight, QuantWeight))
    assert theirs.get_memory_footprint() - ours.get_memory_footprint() == decoded - codes


def test_it_is_not_decoded_where_it_is(tmp_path: Path) -> None:
    model = tied(tmp_path)
    with pytest.raises(InvalidConfig, match="without codes=True"):
        model.dequantize()
    assert model.lm_head.weight.dequantize().shape == (96, 32)


def test_a_model_goes_with_its_last_reference(tmp_path: Path) -> None:
    model = tied(tmp_path)
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_a_module_filled_with_codes_is_not_saved_either(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be saved"):
        filled(tmp_path).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_none_of_whose_weights_are_codes_keeps_its_methods(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("fp16"))
    model = load_model(target, AutoModelForCausalLM, codes=True)
    model.save_pretrained(tmp_path / "saved")
    assert isinstance(AutoModel.from_pretrained(tmp_path / "saved"), torch.nn.Module)
    assert "tie_weights" not in vars(model)
    assert isinstance(model, LlamaForCausalLM)


@pytest.mark.parametrize("change", ["data", "grad", "T"])
def test_what_would_change_nothing_of_a_weight_is_refused(tmp_path: Path, change: str) -> None:
    weight = tied(tmp_path).lm_head.weight
    with pytest.raises(InvalidConfig, match=f"no attribute '{change}' to set"):
        setattr(weight, change, torch.zeros(96, 32))


def test_codes_are_never_said_to_be_trained(tmp_path: Path) -> None:
    weight = tied(tmp_path).lm_head.weight
    assert weight.requires_grad_(requires_grad=False) is weight
    weight.requires_grad = False
    with pytest.raises(InvalidConfig, match="has no gradient"):
        weight.requires_grad_()
    with pytest.raises(InvalidConfig, match="has no gradient"):
        weight.requires_grad = True
    assert not weight.requires_grad


def test_a_weight_tells_its_size_as_a_tensor_does(tmp_path: Path) -> None:
    weight = tied(tmp_path).lm_head.weight
    values = weight.dequantize()
    assert (weight.size(), weight.size(0), weight.size(-1)) == ((96, 32), 96, 32)
    assert (weight.numel(), weight.dim(), weight.ndim) == (values.numel(), 2, 2)
    assert weight.is_floating_point()
    assert np.array_equal(np.asarray(weight), values.numpy())
    assert np.asarray(weight, np.float64).dtype == np.float64
