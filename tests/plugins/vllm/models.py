"""Small models with weights of their own, as folders that anybody opens, and what datasets of them decode to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)

from arrowquant_dist import load_model

_SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.07,
    "tie_word_embeddings": False,
}


def llama_config(**other: Any) -> LlamaConfig:
    """2 layers, 4 heads of which 2 share keys and values."""
    return LlamaConfig(**_SMALL | other)


def mixtral_config(**other: Any) -> MixtralConfig:
    """The same with 4 experts, of which each token has 2."""
    return MixtralConfig(**_SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2} | other)


def qwen2_moe_config(**other: Any) -> Qwen2MoeConfig:
    """Experts that transformers saves one by one, and one that all tokens share."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    return Qwen2MoeConfig(**_SMALL | experts | {"shared_expert_intermediate_size": 256} | other)


def save(config: PretrainedConfig, folder: Path) -> Path:
    """A model of bfloat16 with random weights, the same ones every time."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def decoded(target: Path | str, **options: Any) -> PreTrainedModel:
    """The dataset as a model of transformers, in bfloat16."""
    model: PreTrainedModel = load_model(target, AutoModelForCausalLM, dtype=torch.bfloat16, **options)
    return model.eval()
