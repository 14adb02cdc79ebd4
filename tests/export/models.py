"""Small transformers models with seeded weights, quantized, exported, and opened again by transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    CompressedTensorsConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.driver import quantize
from arrowquant_dist.export import Exported, ExportOptions, export_dataset

RUN = RunConfig(engine="inline", workers=2)
IDS = torch.arange(24).reshape(2, 12)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def scaled(model: PreTrainedModel) -> Any:
    """The model with matrices scaled up so that logits differ clearly."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model.eval()


def small_llama(dtype: str = "float32", **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 192,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 331,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    config = LlamaConfig(**{**sizes, **settings})
    return scaled(LlamaForCausalLM(config).to(DTYPES[dtype]))


def small_bert(dtype: str = "float32") -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, vocab_size=131
    )
    return scaled(BertModel(config).to(DTYPES[dtype]))


def quantized(folder: Path, model: Any, config: QuantizationConfig) -> str:
    """Saves the model to `folder`/source, quantizes that to `folder`/dataset, and returns the dataset."""
    model.save_pretrained(folder / "source")
    quantize(str(folder / "source"), str(folder / "dataset"), config, RUN)
    return str(folder / "dataset")


def exported(dataset: str, out: Path, **options: Any) -> Exported:
    return export_dataset(dataset, str(out), ExportOptions(format="compressed-tensors", **options), RUN)


def opened(out: Path, *, dequantize: bool = False) -> Any:
    """Opens the export with the transformers class for its config.json. No weight may be missing or left over."""
    is_causal = "CausalLM" in json.loads((out / "config.json").read_bytes())["architectures"][0]
    auto = AutoModelForCausalLM if is_causal else AutoModel
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")  # as documented
        model, info = auto.from_pretrained(out, output_loading_info=True, **how)
    assert not any(info.values()), info
    return model.eval()


def as_decoded(model: Any, dataset: str) -> Any:
    """A copy of the model with the values that our loader decodes."""
    auto = AutoModelForCausalLM if "CausalLM" in type(model).__name__ else AutoModel
    filled = auto.from_config(model.config, dtype=model.dtype).eval()
    with WeightLoader(dataset) as loader:
        loader.load_into(filled)
    return filled


def outputs(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """The model's logits, or an encoder's last hidden state, as float32."""
    with torch.no_grad():
        values: torch.Tensor = model(ids)[0].float()
    return values


def difference(one: Any, other: Any) -> float:
    return float((outputs(one) - outputs(other)).abs().max())
