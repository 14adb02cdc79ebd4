"""load_model gives the model that from_pretrained makes from the decoded weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from arrowquant_dist import WeightLoader, load_model
from arrowquant_dist.errors import InvalidConfig, ModelMismatch, NotFound
from tests.models.served import Served, differences, quantize, serve

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48}


def llama(**options: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, **options))


def mixtral() -> MixtralForCausalLM:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(mixtral(), tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(BertForMaskedLM(BertConfig(**SIZES)), tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("model_class", [AutoModelForCausalLM, LlamaForCausalLM])
def test_an_auto_class_and_the_model_s_own_make_the_same_model(causal: Served, model_class: Any) -> None:
    assert (
        differences(load_model(causal.target, model_class), model_class.from_pretrained(causal.decoded)) == []
    )


def test_experts_of_a_checkpoint_are_merged_as_transformers_merges_them(experts: Served) -> None:
    ours = load_model(str(experts.target), AutoModelForCausalLM)
    assert differences(ours, AutoModelForCausalLM.from_pretrained(experts.decoded)) == []


@pytest.mark.parametrize("dtype", [None, "auto", "float16", torch.bfloat16, torch.float32])
def test_dtype_is_that_of_from_pretrained(experts: Served, dtype: Any) -> None:
    ours = load_model(experts.target, AutoModelForCausalLM, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(experts.decoded, dtype=dtype)
    assert differences(ours, theirs) == []


def test_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    served = serve(llama(tie_word_embeddings=True), tmp_path)
    ours = load_model(served.target, AutoModelForCausalLM)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert differences(ours, AutoModelForCausalLM.from_pretrained(served.decoded)) == []


def test_a_head_that_the_checkpoint_lacks_is_refused_by_name(masked: Served) -> None:
    with pytest.raises(ModelMismatch, match=r"would have random values: bert\.pooler.*, classifier\.weight"):
        load_model(masked.target, AutoModelForSequenceClassification, leave_out=["cls."])


def test_a_head_that_may_be_new_is_random_and_all_else_is_read(masked: Served) -> None:
    options: Any = {"initialize": ["classifier", "pooler"], "leave_out": ["cls."]}
    model = load_model(masked.target, AutoModelForSequenceClassification, **options)
    theirs = AutoModelForMaskedLM.from_pretrained(masked.decoded)
    assert differences(model.bert.encoder, theirs.bert.encoder) == []
    assert not model.classifier.weight.is_meta


def test_layers_that_the_model_does_not_have_are_refused_by_name(causal: Served) -> None:
    with pytest.raises(ModelMismatch, match=r"not in the model: lm_head\.weight"):
        load_model(causal.target, AutoModel)
    ours = load_model(causal.target, AutoModel, leave_out=["lm_head.weight"])
    assert differences(ours, AutoModel.from_pretrained(causal.decoded)) == []


def test_a_copy_of_a_tied_layer_is_not_left_over(tmp_path: Path) -> None:
    """The dataset has both names of it, and a model without a head takes one."""
    model = llama(tie_word_embeddings=True)
    served = serve(model, tmp_path)
    assert differences(load_model(served.target, AutoModel), AutoModel.from_pretrained(served.decoded)) == []


def test_what_is_no_class_of_transformers_is_refused(causal: Served) -> None:
    with pytest.raises(InvalidConfig, match="Auto class"):
        load_model(causal.target, torch.nn.Linear)


def test_a_dataset_without_a_config_says_what_is_missing(causal: Served, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.symlink_to(causal.target / "weights")
    with pytest.raises(InvalidConfig, match=r"no config\.json"):
        load_model(bare, AutoModel)


def test_a_checkpoint_in_the_place_of_a_dataset_is_told_from_an_empty_place(
    causal: Served, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="a checkpoint, not a dataset; quantize it first"):
        load_model(causal.source, AutoModel)
    with pytest.raises(NotFound, match="a checkpoint, not a dataset; quantize it first"):
        WeightLoader(causal.source)
    with pytest.raises(NotFound, match="no such file or folder; check the spelling"):
        load_model(tmp_path / "none", AutoModel)
    with pytest.raises(NotFound, match=r"no manifest\.json and no \.parquet file"):
        WeightLoader(tmp_path)


def test_load_into_says_what_loads_a_model_whose_names_are_not_the_checkpoint_s(experts: Served) -> None:
    with torch.device("meta"):
        model = mixtral()
    with (
        WeightLoader(experts.target) as loader,
        pytest.raises(ModelMismatch, match=r"load_model\(target, MixtralFor"),
    ):
        loader.load_into(model)


def test_a_pipeline_of_several_models_is_refused_and_one_of_them_is_loaded(
    masked: Served, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(masked.source, source / "text_encoder")
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "BertForMaskedLM"]}
    (source / "model_index.json").write_text(json.dumps(index))
    quantize(source, target)
    with pytest.raises(InvalidConfig, match="a diffusers pipeline has several models"):
        load_model(target, AutoModelForMaskedLM)
    ours = load_model(target, AutoModelForMaskedLM, subfolder="text_encoder")
    assert differences(ours, AutoModelForMaskedLM.from_pretrained(masked.decoded)) == []


def test_settings_of_generation_come_along(causal: Served, tmp_path: Path) -> None:
    target = Path(shutil.copytree(causal.target, tmp_path / "target"))
    settings = json.loads((target / "generation_config.json").read_text())
    (target / "generation_config.json").write_text(json.dumps(settings | {"max_length": 77, "top_k": 3}))
    config = load_model(target, AutoModelForCausalLM, verify=False).generation_config
    assert (config.max_length, config.top_k) == (77, 3)


def test_code_that_a_config_names_is_not_run(causal: Served, tmp_path: Path) -> None:
    target = Path(shutil.copytree(causal.target, tmp_path / "target"))
    config = json.loads((target / "config.json").read_text())
    config |= {"model_type": "of_others", "auto_map": {"AutoConfig": "evil.Config"}}
    (target / "config.json").write_text(json.dumps(config))
    (target / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(InvalidConfig, match=r"cannot read its config\.json"):
        load_model(target, AutoModelForCausalLM, verify=False)


def test_a_config_with_a_value_of_another_type_is_refused(causal: Served, tmp_path: Path) -> None:
    folder = shutil.copytree(causal.target, tmp_path / "target")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": "wide"}))
    with pytest.raises(InvalidConfig, match=r"cannot read its config\.json .*hidden_size"):
        load_model(folder, AutoModelForCausalLM, verify=False)


def test_kept_codes_of_another_quantizer_are_refused(causal: Served, tmp_path: Path) -> None:
    target = Path(shutil.copytree(causal.target, tmp_path / "target"))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "hqq"}}))
    with pytest.raises(InvalidConfig, match="codes of another quantizer"):
        load_model(target, AutoModelForCausalLM, verify=False)


def test_a_vocabulary_of_another_size_is_refused_by_name(causal: Served, tmp_path: Path) -> None:
    target = Path(shutil.copytree(causal.target, tmp_path / "target"))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(
        ModelMismatch, match=r"lm_head\.weight' has shape \[96, 32\] but \[100, 32\] in the model"
    ):
        load_model(target, AutoModelForCausalLM, verify=False)


def test_a_class_that_wants_a_checkpoint_s_files_is_refused_by_its_name(causal: Served) -> None:
    class OfFiles(LlamaForCausalLM):  # type: ignore[misc]
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            model = super().from_pretrained(*args, **kwargs)
            model.of_files = True  # which a pair of a model and its loading info has not
            return model

    with pytest.raises(InvalidConfig, match=r"OfFiles has a from_pretrained of its own, .*load_into"):
        load_model(causal.target, OfFiles)


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "no_such", "torch.float16", {"": "float32"}])
def test_other_dtypes_are_refused(causal: Served, dtype: Any) -> None:
    with pytest.raises(InvalidConfig, match="dtype is"):
        load_model(causal.target, AutoModelForCausalLM, dtype=dtype)
