"""A config that is given replaces the dataset's config.json, and weights are verified all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, LlamaForCausalLM

from arrowquant_dist import load_model
from arrowquant_dist.errors import CorruptWeights, InvalidConfig, ModelMismatch
from tests.models.served import Served, differences, serve

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48}
OTHER_EPSILON = 0.125


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def target(served: Served, tmp_path: Path) -> Path:
    return Path(shutil.copytree(served.target, tmp_path / "target"))


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def given(form: str, target: Path, tmp_path: Path) -> Any:
    """The dataset's config with another number, in a form that `config` takes."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(target / "config.json", folder)
    edit(folder / "config.json", rms_norm_eps=OTHER_EPSILON)
    forms = {"path": folder, "text": str(folder), "config": LlamaConfig.from_pretrained(folder)}
    return forms[form]


def damage_a_weight(target: Path) -> str:
    """Flips a bit of a layer's codes; gives the layer."""
    row = next(row for row in pq.read_table(target / "index.parquet").to_pylist() if row["scales_offset"])
    part = target / row["part"]
    content = bytearray(part.read_bytes())
    content[row["data_offset"]] ^= 1
    part.write_bytes(content)
    return str(row["layer_name"])


@pytest.mark.parametrize("form", ["path", "text", "config"])
@pytest.mark.parametrize("codes", [False, True], ids=["decoded", "codes"])
def test_it_is_the_model_s_in_every_form(
    served: Served,
    target: Path,
    tmp_path: Path,
    form: str,
    codes: bool,  # noqa: FBT001
) -> None:
    config = given(form, target, tmp_path)
    model = load_model(target, AutoModelForCausalLM, config=config, codes=codes)
    assert model.config.rms_norm_eps == OTHER_EPSILON
    if not codes:
        theirs = AutoModelForCausalLM.from_pretrained(served.decoded, config=config)
        assert differences(model, theirs) == []


@pytest.mark.parametrize("codes", [False, True], ids=["decoded", "codes"])
def test_weights_stay_verified_beside_an_edited_config(target: Path, tmp_path: Path, codes: bool) -> None:  # noqa: FBT001
    edit(target / "config.json", rms_norm_eps=0.5)
    config = given("path", target, tmp_path)
    with pytest.raises(
        CorruptWeights,
        match=r"config\.json: .* \(\d+ bytes instead of \d+\), so it was edited or is damaged; fetch it again or, if "
        r"the edit was intended, pass config= with its folder \(weights stay verified\) or verify=False",
    ):
        load_model(target, AutoModelForCausalLM, codes=codes)
    model = load_model(target, AutoModelForCausalLM, config=config, codes=codes)
    assert model.config.rms_norm_eps == OTHER_EPSILON
    layer = damage_a_weight(target)
    with pytest.raises(CorruptWeights, match=layer.replace(".", r"\.")):
        load_model(target, AutoModelForCausalLM, config=config, codes=codes)


def test_a_config_of_as_many_bytes_says_that_its_hash_is_another(target: Path) -> None:
    file = target / "config.json"
    file.write_text(file.read_text().replace('"hidden_size": 32', '"hidden_size": 23'))
    with pytest.raises(CorruptWeights, match="the same size, but another hash"):
        load_model(target, AutoModelForCausalLM)


def test_a_dataset_that_lost_its_config_is_read_with_one_that_is_given(served: Served, target: Path) -> None:
    config = LlamaConfig.from_pretrained(target)
    (target / "config.json").unlink()
    ours = load_model(target, AutoModelForCausalLM, config=config)
    assert differences(ours, AutoModelForCausalLM.from_pretrained(served.decoded)) == []


def test_settings_of_generation_are_still_those_of_the_dataset_and_verified(target: Path) -> None:
    config = LlamaConfig.from_pretrained(target)
    edit(target / "generation_config.json", max_length=77)
    with pytest.raises(CorruptWeights, match=r"generation_config\.json: .* verify=False"):
        load_model(target, AutoModelForCausalLM, config=config)


def test_the_config_that_is_given_is_not_changed(target: Path) -> None:
    config = LlamaConfig.from_pretrained(target)
    before = config.to_json_string(), config.name_or_path
    model = load_model(target, AutoModelForCausalLM, config=config, attn_implementation="eager")
    assert (config.to_json_string(), config.name_or_path) == before
    assert model.config is not config


def test_a_config_that_the_weights_do_not_fit_is_refused_by_layer(target: Path) -> None:
    with pytest.raises(ModelMismatch, match=r"model\.embed_tokens\.weight|lm_head\.weight"):
        load_model(target, AutoModelForCausalLM, config=LlamaConfig(**(SIZES | {"vocab_size": 100})))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"model_type": "llama"}, "config is the mapping; pass a config of transformers or the folder"),
        (5, "config is the number 5; pass a config of transformers or the folder"),
        ("no/such/folder", r"config is not a folder with a config\.json"),
        (LlamaConfig(**SIZES, quantization_config={"quant_method": "hqq"}), "codes of another quantizer"),
    ],
    ids=["mapping", "number", "no folder", "quantized"],
)
def test_what_is_no_config_is_refused(target: Path, config: Any, match: str) -> None:
    with pytest.raises(InvalidConfig, match=match):
        load_model(target, AutoModelForCausalLM, config=config)


def test_a_config_of_another_class_is_refused(target: Path) -> None:
    with pytest.raises(InvalidConfig, match="is a BertConfig, but LlamaForCausalLM takes a LlamaConfig"):
        load_model(target, LlamaForCausalLM, config=BertConfig(**SIZES))


@pytest.mark.parametrize("subfolder", [5, "../target", "/etc", "a/../../b"])
def test_a_subfolder_lies_within_the_dataset(target: Path, subfolder: Any) -> None:
    with pytest.raises(InvalidConfig, match="subfolder"):
        load_model(target, AutoModelForCausalLM, subfolder=subfolder)
