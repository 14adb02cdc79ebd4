"""Families other than Llama in the plugin: biases, norms of queries and keys, fused projections, a sentence encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, load_sentence_transformer
from arrowquant_dist.plugins.vllm.folder import ServedAsCodes, write_model_folder
from tests.plugins.vllm.models import SMALL, decoded, save
from tests.plugins.vllm.serving import FARTHEST, FARTHEST_INT8, PROMPTS, Vllm, continued

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

INT8 = QuantizationConfig(mixed_precision_layers=["embed", "lm_head"], scale_dtype="bfloat16")
FAMILIES: dict[str, PretrainedConfig] = {
    "Qwen2": Qwen2Config(**SMALL),
    "Qwen3": Qwen3Config(**SMALL, head_dim=64),
    "Mistral": MistralConfig(**SMALL, sliding_window=None),
    "Phi-3": Phi3Config(**SMALL, pad_token_id=0),
    "Gemma 3": Gemma3TextConfig(**SMALL | {"tie_word_embeddings": True}, head_dim=64),
}


@pytest.mark.parametrize("way", ["decoded", "W8A8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_as_our_decoded_model(vllm: Vllm, family: str, way: str, tmp_path: Path) -> None:
    source, target = save(FAMILIES[family], tmp_path / "source"), tmp_path / "target"
    ArrowQuantizer(INT8).quantize(source, target)
    model = target
    if way == "W8A8":
        model = tmp_path / "folder"
        write_model_folder(target, model, ServedAsCodes("int8"))
    prompts, ours = continued(decoded(target))
    answer = vllm.answer(model, prompts, load_format="arrowquant")
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= (FARTHEST_INT8 if way == "W8A8" else FARTHEST)


def test_a_sentence_encoder_embeds_as_our_decoded_model(vllm: Vllm, minilm: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    ArrowQuantizer(QuantizationConfig()).quantize(minilm, target)
    model: Any = load_sentence_transformer(target).float().eval()
    ids = torch.tensor([[101, 1037, 18401, 23634, 2015, 102], [101, 12174, 6599, 3473, 2011, 102]])
    with torch.no_grad():
        ours = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"]
    found = vllm.embeddings(target, ids, load_format="arrowquant", dtype="float32")
    assert found.shape == ours.shape
    assert (found - ours).abs().max() <= 1e-4
