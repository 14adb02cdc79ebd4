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
)

from arrowquant_dist import load_model

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # As large as these, weights decide enough tokens for tests, and int8 activations cost no more than the figure.
    "initializer_range": 0.025,
    "tie_word_embeddings": False,
}


def llama_config(**other: Any) -> LlamaConfig:
    """2 layers, 4 heads of which 2 share keys and values."""
    return LlamaConfig(**SMALL | other)


def mixtral_config(**other: Any) -> MixtralConfig:
    """The same with 4 experts, of which each token has 2."""
    return MixtralConfig(**SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2} | other)


def save(config: PretrainedConfig, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model with random weights, the same ones every time."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def decoded(target: Path | str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> PreTrainedModel:
    """The dataset as a model of transformers."""
    model: PreTrainedModel = load_model(target, AutoModelForCausalLM, dtype=dtype, **options)
    return model.eval()


def with_int8_activations(model: PreTrainedModel) -> PreTrainedModel:
    """The same with the inputs of each Linear but the head rounded to int8, as vLLM does it (`_custom_ops.py::
    onednn_scaled_int8_quant`): a scale a token, the largest value by 127; nearest codes; nothing else is rounded."""

    def rounded(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        values = inputs[0].float()
        scales = values.abs().amax(-1, keepdim=True) / 127
        return ((values / scales).round().clamp(-128, 127).mul(scales).to(inputs[0].dtype),)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(rounded)
    return model
