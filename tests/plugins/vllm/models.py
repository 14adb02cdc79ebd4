"""Small models with weights of their own, as a folder that anybody opens, and what datasets of them decode to."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from arrowquant_dist import WeightLoader

VOCABULARY = 512


def save_llama(folder: Path) -> Path:
    """2 layers, 4 heads of which 2 share keys and values, in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.07,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def decoded(target: Path) -> PreTrainedModel:
    """The dataset as a model of transformers, in bfloat16."""
    model = LlamaForCausalLM(AutoConfig.from_pretrained(target)).to(torch.bfloat16).eval()
    WeightLoader(str(target)).load_into(model)
    return model
