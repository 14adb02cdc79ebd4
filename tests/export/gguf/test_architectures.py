"""Names and settings are those that the gguf package has for llama.cpp; models that it would compute differently are
refused."""

from __future__ import annotations

from typing import Any

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.export.gguf.architecture import Architecture
from arrowquant_dist.export.gguf.bert import bert_architecture
from arrowquant_dist.export.gguf.llama import llama_architecture
from arrowquant_dist.export.gguf.settings import Settings

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "type_vocab_size": 2,
}
MODELS = {
    "llama": LLAMA,
    "llama with biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": None},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3"},
    "bert": BERT,
}
LONG = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def shapes_of(fields: dict[str, Any], **more: Any) -> dict[str, tuple[int, ...]]:
    """Of transformers' own model, by its names."""
    config = AutoConfig.for_model(**fields, **more)
    make = AutoModel if fields["model_type"] == "bert" else AutoModelForCausalLM
    with torch.device("meta"):
        model = make.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def architecture_of(fields: dict[str, Any], names: dict[str, Any] | None = None) -> Architecture:
    make = bert_architecture if fields["model_type"] == "bert" else llama_architecture
    layers = {name: name for name in (shapes_of(fields) if names is None else names)}
    return make(Settings("config.json", fields), layers)


@pytest.mark.parametrize("model", MODELS)
def test_each_tensor_has_the_name_that_gguf_has_for_it(model: str) -> None:
    fields = MODELS[model]
    shapes = shapes_of(fields)
    architecture = architecture_of(fields)
    places = architecture.placed(shapes)
    left_out = {name for name in shapes if name.startswith(("pooler", "embeddings.position_ids"))}
    assert set(places) == set(shapes) - left_out
    (arch,) = (arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    known = gguf.get_tensor_name_map(arch, fields["num_hidden_layers"])
    for name, place in places.items():
        assert place.name == known.get_name(name, try_suffixes=(".weight", ".bias")), name


@pytest.mark.parametrize("model", MODELS)
def test_metadata_has_the_format_s_keys(model: str) -> None:
    architecture = architecture_of(MODELS[model])
    keys = {
        value.replace("{arch}", architecture.name)
        for group in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for name, value in vars(group).items()
        if name.isupper()
    }
    assert {f"{architecture.name}.{key}" for key in architecture.fields} <= keys


def test_figures_are_config_s() -> None:
    fields = architecture_of(LLAMA).fields
    assert fields == {
        "vocab_size": 96,
        "context_length": 256,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": 16,
        "rope.freq_base": 5e5,
    }


def test_llama3_s_factors_are_transformers_own() -> None:
    rope = LONG
    plain = AutoModel.from_config(AutoConfig.for_model(**{**LLAMA, "rope_theta": 1e4}))
    scaled = AutoModel.from_config(AutoConfig.for_model(**{**LLAMA, "rope_parameters": rope}))
    expected = (plain.rotary_emb.inv_freq / scaled.rotary_emb.inv_freq).tolist()
    for own in ({"rope_parameters": rope}, {"rope_scaling": {**rope, "rope_theta": None}, "rope_theta": 1e4}):
        found = architecture_of({**LLAMA, **own}, shapes_of(LLAMA)).rope_factors
        assert found == pytest.approx(expected, rel=1e-5)
    assert max(expected) == pytest.approx(8, rel=1e-5)
    assert min(expected) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": {**LONG, "factor": 2.0}, "rope_parameters": LONG},
        {"rope_scaling": {}, "rope_parameters": LONG},
        {"rope_scaling": None, "rope_parameters": LONG},
        {"rope_scaling": LONG, "rope_theta": 77.0},
        {"rope_scaling": {**LONG, "type": "linear"}},
        {"rope_parameters": LONG, "original_max_position_embeddings": 32},
    ],
    ids=["both", "empty", "null", "two bases", "two kinds", "two lengths"],
)
def test_of_two_places_for_positions_transformers_one_holds(fields: dict[str, Any]) -> None:
    llama = {name: value for name, value in LLAMA.items() if name != "rope_theta"} | fields
    model = AutoModel.from_config(AutoConfig.for_model(**llama))
    architecture = architecture_of(llama, shapes_of(LLAMA))
    base = float(architecture.fields["rope.freq_base"])
    ours = base ** (-torch.arange(0, 16, 2) / 16) / torch.tensor(architecture.rope_factors)
    torch.testing.assert_close(ours, model.rotary_emb.inv_freq, rtol=1e-5, atol=0)


def test_rows_of_queries_and_keys_take_turns_in_llama_alone() -> None:
    for model, turns in (("llama with biases", 16), ("mistral", 16), ("qwen2", 0), ("bert", 0)):
        places = architecture_of(MODELS[model]).places
        ordered = {name.rpartition("_proj")[0][-1:] for name, place in places.items() if place.head_rows}
        assert ordered == ({"q", "k"} if turns else set())
        assert {place.head_rows for place in places.values()} == ({0, turns} if turns else {0})


def test_a_head_that_is_the_embedding_is_left_out() -> None:
    shapes = shapes_of(LLAMA)
    for fields, layers in (
        ({**LLAMA, "tie_word_embeddings": True}, {name: name for name in shapes}),
        (LLAMA, {**{name: name for name in shapes}, "lm_head.weight": "model.embed_tokens.weight"}),
        (LLAMA, {**{name: name for name in shapes}, "model.embed_tokens.weight": "lm_head.weight"}),
    ):
        architecture = llama_architecture(Settings("config.json", fields), layers)
        assert "output.weight" not in {place.name for place in architecture.placed(shapes).values()}
    assert "output.weight" in {place.name for place in architecture_of(LLAMA).placed(shapes).values()}


def test_names_without_the_model_s_prefix_and_the_first_bert_s_are_taken() -> None:
    bare = {
        name.removeprefix("model."): shape
        for name, shape in shapes_of(LLAMA).items()
        if "lm_head" not in name
    }
    places = architecture_of(LLAMA, bare).placed(bare)
    assert places["embed_tokens.weight"].name == "token_embd.weight"
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): shape
        for name, shape in shapes_of(BERT).items()
    } | {"cls.predictions.bias": (96,)}
    places = architecture_of(BERT, old).placed(old)
    assert places["bert.embeddings.LayerNorm.gamma"].name == "token_embd_norm.weight"
    assert places["bert.embeddings.LayerNorm.beta"].name == "token_embd_norm.bias"


def test_a_sliding_window_is_how_long_a_text_may_be() -> None:
    mistral = {**LLAMA, "model_type": "mistral"}
    assert architecture_of({**mistral, "sliding_window": 64}, shapes_of(LLAMA)).fields["context_length"] == 64
    assert (
        architecture_of({**mistral, "sliding_window": None}, shapes_of(LLAMA)).fields["context_length"] == 256
    )
    long = {**mistral, "max_position_embeddings": 32768}
    assert architecture_of(long, shapes_of(LLAMA)).fields["context_length"] == 4096  # transformers' default


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("llama", {"head_dim": 15}),
        ("llama", {"num_key_value_heads": 3}),
        ("llama", {"is_causal": False}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        ),
        ("qwen2", {"use_sliding_window": True}),
        ("qwen2", {"head_dim": 32}),  # llama.cpp wants heads that are as wide as the model
        ("qwen2", {"rope_parameters": LONG}),  # has no factors of frequencies but in llama
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"is_causal": False}),
        ("qwen3", {"rope_scaling": LONG}),
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"is_decoder": True}),
        ("bert", {"is_causal": True}),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(model: str, changes: dict[str, Any]) -> None:
    names = shapes_of(MODELS[model])
    with pytest.raises(InvalidCheckpoint, match=r"not supported in GGUF.*--format compressed-tensors"):
        architecture_of({**MODELS[model], **changes}, names)


@pytest.mark.parametrize("model", ["llama", "qwen3", "bert"])
@pytest.mark.parametrize("damage", ["missing", None, "12", -1, 0, 1.5, True, 2**40, [], {}])
def test_a_field_that_is_missing_or_no_number_is_named(model: str, damage: Any) -> None:
    names = shapes_of(MODELS[model])
    for field in (
        "vocab_size",
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "max_position_embeddings",
    ):
        fields = {**MODELS[model], field: damage}
        if damage == "missing":
            del fields[field]
        with pytest.raises(InvalidCheckpoint, match=rf"{field} of config\.json (is|has)"):
            architecture_of(fields, names)


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_more_layers_than_the_dataset_has_take_no_memory(model: str) -> None:
    names = shapes_of(MODELS[model])
    with pytest.raises(
        InvalidCheckpoint, match=r"num_hidden_layers of config\.json is the number 2147483647"
    ):
        architecture_of({**MODELS[model], "num_hidden_layers": 2**31 - 1}, names)


def test_layers_that_are_missing_unknown_or_of_another_shape_are_named() -> None:
    shapes = shapes_of(LLAMA)
    architecture = architecture_of(LLAMA)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(InvalidCheckpoint, match=rf"layer {name} is missing"):
        architecture.placed({other: shape for other, shape in shapes.items() if other != name})
    with pytest.raises(InvalidCheckpoint, match=r"layers a, b are not known in GGUF's llama"):
        architecture.placed({**shapes, "a": (1,), "b": (1,)})
    with pytest.raises(InvalidCheckpoint, match=rf"layer '{name}'.*\[64, 128\].*\[128, 64\]"):
        architecture.placed({**shapes, name: (64, 128)})
    with pytest.raises(InvalidCheckpoint, match=r"lm_head\.weight is missing"):
        architecture.placed({other: shape for other, shape in shapes.items() if other != "lm_head.weight"})
