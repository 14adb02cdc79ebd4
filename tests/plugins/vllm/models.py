"""Small models with random weights, as folders that any program opens, and the models that their datasets decode to."""

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
    # With weights this large, enough tokens are clear-cut for tests, and int8 activations stay within the limit.
    "initializer_range": 0.025,
    "tie_word_embeddings": False,
}


def llama_config(**other: Any) -> LlamaConfig:
    """A config with 2 layers and 4 heads, of which each 2 share keys and values."""
    return LlamaConfig(**SMALL | other)


def mixtral_config(**other: Any) -> MixtralConfig:
    """The same with 4 experts, of which each token uses 2."""
    return MixtralConfig(**SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2} | other)


def save(config: PretrainedConfig, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Saves a model with random weights, the same ones every time."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def decoded(target: Path | str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> PreTrainedModel:
    """The dataset as a transformers model with decoded weights."""
    model: PreTrainedModel = load_model(target, AutoModelForCausalLM, dtype=dtype, **options)
    return model.eval()


def with_int8_activations(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the inputs of each Linear except the head rounded to int8, as vLLM does it (`_custom_ops.py::
    onednn_scaled_int8_quant`): a scale per token, which is its largest magnitude divided by 127, and the nearest codes.
    Nothing else is rounded."""

    def rounded(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        values = inputs[0].float()
        scales = values.abs().amax(-1, keepdim=True) / 127
        return ((values / scales).round().clamp(-128, 127).mul(scales).to(inputs[0].dtype),)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(rounded)
    return model
