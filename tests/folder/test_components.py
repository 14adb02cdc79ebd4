"""Folders that modules.json and model_index.json name are part of the model, with their paths as prefixes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import Storage
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.errors import InvalidCheckpoint
from tests.folder.places import (
    Put,
    bin_of,
    index_of,
    json_of,
    notes_of,
    put_local,
    safetensors_of,
    values_of,
)
from tests.servers.fixtures import Bucket

RUN = RunConfig(engine="inline")


def modules(*entries: tuple[str, str]) -> bytes:
    """(path, class) of each module."""
    return json_of(
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(entries)
        ]
    )


SENTENCES = {
    "modules.json": modules(
        ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3", "Normalize")
    ),
    "config.json": b"{}",
    "model.safetensors": safetensors_of("embeddings.weight"),
    "1_Pooling/config.json": b"{}",
    "2_Dense/config.json": b'{"in_features": 2}',
    "2_Dense/model.safetensors": safetensors_of("linear.weight", "linear.bias", value=2),
    "2_Dense/model.fp16.safetensors": safetensors_of("linear.weight", "linear.bias", value=9),
    "2_Dense/modeling.py": b"raise SystemExit",
    "3_Unnamed/model.safetensors": safetensors_of("x", value=9),
    "3_Unnamed/config.json": b"{}",
}


def test_modules_are_in_it_under_their_prefix_and_what_is_not_named_is_told(put: Put) -> None:
    uri = put(SENTENCES)
    assert values_of(uri) == {"embeddings.weight": 1, "2_Dense.linear.weight": 2, "2_Dense.linear.bias": 2}
    checkpoint = open_checkpoint(uri)
    assert checkpoint.sidecars == (
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "config.json",
        "modules.json",
    )
    notes = notes_of(uri)
    assert "folders with weights that no config here names were left out: 3_Unnamed" in notes
    assert "left out: 2_Dense/model.fp16.safetensors" in notes


def test_modules_on_s3(bucket: Bucket) -> None:
    for name, data in SENTENCES.items():
        bucket.objects.put(f"{bucket.uri}/model/{name}", data)
    checkpoint = open_checkpoint(f"{bucket.uri}/model", Storage(bucket.storage_options))
    assert {layer.name for layer in checkpoint.layers} == {
        "embeddings.weight",
        "2_Dense.linear.weight",
        "2_Dense.linear.bias",
    }
    assert "2_Dense/config.json" in checkpoint.sidecars


def test_modules_saved_by_pytorch_and_in_numbered_files(put: Put) -> None:
    uri = put(
        {
            "modules.json": modules(
                ("", "Transformer"), ("1_WeightedLayerPooling", "WeightedLayerPooling"), ("a/b", "Dense")
            ),
            "model-00001-of-00002.safetensors": safetensors_of("x"),
            "model-00002-of-00002.safetensors": safetensors_of("y"),
            "1_WeightedLayerPooling/pytorch_model.bin": bin_of("layer_weights", value=2),
            "a/b/model.safetensors.index.json": index_of(linear="m.safetensors"),
            "a/b/m.safetensors": safetensors_of("linear", value=3),
            "a/b/config.json": b"{}",
        }
    )
    assert values_of(uri) == {"x": 1, "y": 1, "1_WeightedLayerPooling.layer_weights": 2, "a.b.linear": 3}
    assert "a/b/config.json" in open_checkpoint(uri).sidecars


def test_the_model_itself_may_lie_in_a_module_s_folder(put: Put) -> None:
    uri = put(
        {
            "modules.json": modules(("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")),
            "0_Transformer/pytorch_model.bin": bin_of("embeddings.weight", value=2),
            "0_Transformer/tokenizer.json": b"{}",
            "pytorch_model.bin": bin_of("embeddings.weight", value=9),
        }
    )
    assert values_of(uri) == {"0_Transformer.embeddings.weight": 2}
    assert "0_Transformer/tokenizer.json" in open_checkpoint(uri).sidecars
    assert "files beside these folders were left out: pytorch_model.bin" in notes_of(uri)


def test_static_embeddings_and_clip(put: Put) -> None:
    static = {
        "modules.json": modules(("0_StaticEmbedding", "StaticEmbedding"), ("1_Normalize", "Normalize")),
        "0_StaticEmbedding/model.safetensors": safetensors_of("embedding.weight"),
        "0_StaticEmbedding/tokenizer.json": b"{}",
    }
    assert values_of(put(static)) == {"0_StaticEmbedding.embedding.weight": 1}


def test_what_a_router_chooses_from_is_in_it(put: Put) -> None:
    uri = put(
        {
            "modules.json": modules(("", "Router"), ("1_Pooling", "Pooling")),
            "router_config.json": json_of(
                {
                    "types": {
                        "query_0_StaticEmbedding": "sentence_transformers.models.StaticEmbedding",
                        "document_0_Transformer": "sentence_transformers.models.Transformer",
                    }
                }
            ),
            "query_0_StaticEmbedding/model.safetensors": safetensors_of("embedding.weight"),
            "document_0_Transformer/model.safetensors": safetensors_of("embeddings.weight", value=2),
            "document_0_Transformer/config.json": b"{}",
        }
    )
    assert values_of(uri) == {
        "query_0_StaticEmbedding.embedding.weight": 1,
        "document_0_Transformer.embeddings.weight": 2,
    }
    assert "document_0_Transformer/config.json" in open_checkpoint(uri).sidecars


def test_a_pipeline_s_components_are_in_it(put: Put) -> None:
    uri = put(
        {
            "model_index.json": json_of(
                {
                    "_class_name": "StableDiffusionPipeline",
                    "unet": ["diffusers", "UNet2DConditionModel"],
                    "vae": ["diffusers", "AutoencoderKL"],
                    "scheduler": ["diffusers", "PNDMScheduler"],
                    "tokenizer": ["transformers", "CLIPTokenizer"],
                    "safety_checker": [None, None],
                    "requires_safety_checker": True,
                }
            ),
            "unet/config.json": b"{}",
            "unet/diffusion_pytorch_model.safetensors": safetensors_of("conv.weight", value=2),
            "unet/diffusion_pytorch_model.fp16.safetensors": safetensors_of("conv.weight", value=9),
            "unet/diffusion_pytorch_model.bin": bin_of("conv.weight", value=9),
            "vae/config.json": b"{}",
            "vae/diffusion_pytorch_model.fp16.safetensors": safetensors_of("conv.weight", value=3),
            "scheduler/scheduler_config.json": b"{}",
            "tokenizer/vocab.json": b"{}",
            "v1-5-pruned.safetensors": safetensors_of("model.conv.weight", value=9),
        }
    )
    assert values_of(uri) == {"unet.conv.weight": 2, "vae.conv.weight": 3}
    assert open_checkpoint(uri).sidecars == (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
    )
    assert "left out: v1-5-pruned.safetensors" in notes_of(uri)


DENSE = modules(("", "Transformer"), ("1_Dense", "Dense"))
BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "a module without its weights": (
        {"modules.json": DENSE},
        "1_Dense: modules.json names this folder, but it has no weights",
    ),
    "a path that leaves": ({"modules.json": modules(("../other", "Dense"))}, "not a plain path"),
    "an absolute path": ({"modules.json": modules(("/etc", "Dense"))}, "not a plain path"),
    "a hidden path": ({"modules.json": modules((".ssh", "Dense"))}, "not a plain path"),
    "no JSON": ({"modules.json": b"[{"}, "not readable JSON"),
    "half a module": (
        {"modules.json": json_of([{"path": "", "type": "T"}, {"path": "x"}])},
        "not a list of modules",
    ),
    "names that clash": (
        {
            "modules.json": DENSE,
            "model.safetensors": safetensors_of("1_Dense.linear.weight"),
            "1_Dense/model.safetensors": safetensors_of("linear.weight"),
        },
        "'1_Dense.linear.weight'.*another folder",
    ),
    "a name that another folder's prefix begins": (
        {
            "modules.json": DENSE,
            "model.safetensors": safetensors_of("1_Dense.other"),
            "1_Dense/model.safetensors": safetensors_of("linear.weight"),
        },
        "'1_Dense.other'.*another folder",
    ),
    "a missing component": (
        {"model_index.json": json_of({"_class_name": "P", "unet": ["diffusers", "UNet2DConditionModel"]})},
        "unet: model_index.json names this folder, but it has no weights",
    ),
    "a component that is an adapter": (
        {
            "modules.json": modules(("0", "Transformer")),
            "0/adapter_model.safetensors": safetensors_of("base_model.model.q.lora_A.weight"),
            "0/adapter_config.json": b'{"base_model_name_or_path": "org/base"}',
        },
        "adapter .*'org/base'",
    ),
}


@pytest.mark.parametrize(("files", "reason"), BAD.values(), ids=BAD.keys())
def test_what_can_t_be_put_together_is_refused(put: Put, files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(InvalidCheckpoint) as caught:
        open_checkpoint(put({"model.safetensors": safetensors_of("x"), **files}))
    assert re.search(reason, str(caught.value)), caught.value


def test_another_program_s_modules_json_names_nothing(put: Put) -> None:
    uri = put({"modules.json": b'{"modules": ["x"]}', "model.safetensors": safetensors_of("a")})
    assert values_of(uri) == {"a": 1}


def test_a_dataset_of_modules_has_their_values_and_is_a_source_again(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(8, 16, generator=generator)
    files = {**SENTENCES, "2_Dense/model.safetensors": save({"linear.weight": dense})}
    source, target = put_local(tmp_path / "model", files), tmp_path / "out"
    quantize(source, str(target), QuantizationConfig(), RUN)
    again = tmp_path / "again"
    quantize(str(target), str(again), QuantizationConfig("int4", per_channel=False), RUN)
    for place, bound in ((target, 0.02), (again, 0.3)):
        with WeightLoader(str(place)) as loader:
            weights = dict(loader)
        assert set(weights) == {"embeddings.weight", "2_Dense.linear.weight"}
        assert (weights["2_Dense.linear.weight"] - dense).abs().max() < bound
        assert json.loads((place / "2_Dense/config.json").read_text()) == {"in_features": 2}
        assert not (place / "2_Dense/modeling.py").exists()


def test_a_component_that_is_quantized_is_decoded_by_its_own_config(tmp_path: Path) -> None:
    quantized: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    codes = torch.full((128, 128), 2.0).to(torch.float8_e4m3fn)
    source = put_local(
        tmp_path / "model",
        {
            "model_index.json": json_of({"_class_name": "P", "transformer": ["diffusers", "T"]}),
            "transformer/config.json": json_of({"torch_dtype": "float32", "quantization_config": quantized}),
            "transformer/model.safetensors": save(
                {"proj.weight": codes, "proj.weight_scale_inv": torch.full((1, 1), 0.5)}
            ),
        },
    )
    quantize(source, str(tmp_path / "out"), QuantizationConfig(), RUN)
    with WeightLoader(str(tmp_path / "out")) as loader:
        weights = dict(loader)
    assert {name: float(tensor.max()) for name, tensor in weights.items()} == {
        "transformer.proj.weight": pytest.approx(1.0)
    }
    assert json.loads((tmp_path / "out/transformer/config.json").read_text()) == {"torch_dtype": "float32"}
