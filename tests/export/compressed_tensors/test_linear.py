"""What is taken for a Linear is one in every transformers family that has a layer of that name."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from arrowquant_dist.export.compressed_tensors.linear import CONV1D, EMBEDDING, UNKNOWN, why_not_linear

_FAMILIES = [
    *(
        "albert",
        "bart",
        "bert",
        "bloom",
        "codegen",
        "deberta-v2",
        "deepseek_v3",
        "distilbert",
        "electra",
        "falcon",
    ),
    *(
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "granite",
        "llama",
    ),
    *(
        "mamba2",
        "mixtral",
        "modernbert",
        "mpt",
        "nomic_bert",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
    ),
    *("qwen3_moe", "qwen3_next", "roberta", "stablelm", "starcoder2", "t5", "vit", "whisper", "xlm-roberta"),
]
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")


def _on_meta(family: str) -> Any:
    """A model of two layers without values."""
    config = AutoConfig.for_model(family)
    for name in _LAYERS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 2)
    if isinstance(getattr(config, "layer_types", None), list):
        with suppress(AttributeError):  # where it follows from other settings
            config.layer_types = config.layer_types[:2]
    if family == "gpt_neo":
        config.attention_types, config.attention_layers = [[["global", "local"], 1]], ["global", "local"]
    auto = AutoModel if family in ("t5", "vit", "whisper", "nomic_bert") else AutoModelForCausalLM
    with torch.device("meta"):
        try:
            return auto.from_config(config)
        except ValueError:  # an encoder without a causal class
            return AutoModel.from_config(config)


@pytest.mark.parametrize("family", _FAMILIES)
def test_names_say_what_modules_are(family: str) -> None:
    wrong, linear = [], 0
    for name, module in _on_meta(family).named_modules():
        own = dict(module.named_parameters(recurse=False))
        if "weight" not in own or own["weight"].ndim < 2:
            continue
        is_linear = isinstance(module, torch.nn.Linear)
        taken = why_not_linear(f"{name}.weight", tuple(own["weight"].shape), family) is None
        linear += is_linear
        if taken and not is_linear:
            wrong.append(name)
        if is_linear and not taken and "router" not in name and "gate" not in name:
            wrong.append(f"{name}, which is one")
    assert not wrong
    assert linear or family == "gpt2"


@pytest.mark.slow
def test_no_family_has_another_module_of_a_name_that_is_taken_for_a_linear() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    built, wrong = 0, []
    for family in sorted(CONFIG_MAPPING.keys()):
        try:
            model = _on_meta(family)
        except Exception:  # noqa: BLE001, S112 - what its default config cannot build is not what is claimed here
            continue
        built += 1
        for name, module in model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if "weight" not in own or own["weight"].ndim < 2 or isinstance(module, torch.nn.Linear):
                continue
            if why_not_linear(f"{name}.weight", tuple(own["weight"].shape), family) is None:
                wrong.append(f"{family}: {name} ({type(module).__name__})")
    assert built > 250
    assert not wrong


@pytest.mark.parametrize(
    ("name", "family", "why"),
    [
        ("model.embed_tokens", "llama", EMBEDDING),
        ("transformer.wte", "gpt2", EMBEDDING),
        ("shared", "t5", EMBEDDING),
        ("input_embeds_layers.0", "bark", EMBEDDING),
        ("h.0.attn.c_attn", "gpt2", CONV1D),
        ("h.0.attn.c_attn", "", CONV1D),
        ("h.0.attn.c_attn", "gpt_bigcode", None),
        ("model.layers.0.mlp.gate", "qwen3_moe", UNKNOWN),
        ("mm_projector.2", "llava", None),
        ("lm_head", "llama", None),
        ("model.layers.11.mlp.experts.7.w2", "mixtral", None),
        ("model.layers.0.something_new", "llama", UNKNOWN),
    ],
)
def test_of_a_name_that_means_several_things_the_family_decides_and_nothing_is_guessed(
    name: str, family: str, why: str | None
) -> None:
    assert why_not_linear(f"{name}.weight", (64, 32), family) == why
