"""A model in several folders is exported to the same folders, under the names that each of them uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.driver import quantize
from arrowquant_dist.export import ExportOptions, export_dataset
from tests.export.datasets import loaded, same
from tests.sources import random_weights

RUN = RunConfig(engine="inline", workers=2)
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.31.0",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
}
DIFFUSERS = b'{"_class_name": "X", "_diffusers_version": "0.31.0"}'


def paths_of(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def of_folder(values: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in values.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pipeline")
    source = folder / "source"
    parts = {
        "text_encoder/model": b'{"model_type": "clip_text_model"}',
        "unet/diffusion_pytorch_model": DIFFUSERS,
        "vae/diffusion_pytorch_model": DIFFUSERS,
    }
    for number, (stem, config) in enumerate(parts.items()):
        path = source / f"{stem}.safetensors"
        path.parent.mkdir(parents=True)
        weights = random_weights(3 + number, 256, 256, torch.float32)
        save_file({**weights, "conv.weight": torch.full((8, 4, 3, 3), float(number))}, path)
        (path.parent / "config.json").write_bytes(config)
    (source / "model_index.json").write_text(json.dumps(PIPELINE))
    (source / "scheduler").mkdir()
    (source / "scheduler/scheduler_config.json").write_text("{}")
    quantize(str(source), str(folder / "dataset"), QuantizationConfig("int8"), RUN)
    return str(folder / "dataset")


def test_a_pipeline_comes_back_in_its_folders_under_its_own_names(pipeline: str, tmp_path: Path) -> None:
    export_dataset(pipeline, tmp_path / "out", ExportOptions(), RUN)
    weights = {
        "text_encoder/model.safetensors": "text_encoder.",
        "unet/diffusion_pytorch_model.safetensors": "unet.",
        "vae/diffusion_pytorch_model.safetensors": "vae.",
    }
    assert paths_of(tmp_path / "out") == {
        *weights,
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
        "export.json",
    }
    expected = loaded(pipeline)
    for path, prefix in weights.items():
        assert same(load_file(tmp_path / "out" / path), of_folder(expected, prefix))
    assert sum(len(of_folder(expected, prefix)) for prefix in weights.values()) == len(expected)
    assert json.loads((tmp_path / "out/model_index.json").read_text()) == PIPELINE
    with safe_open(tmp_path / "out/vae/diffusion_pytorch_model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("conv.weight"), torch.full((8, 4, 3, 3), 2.0))


def test_a_folder_of_several_files_has_an_index_of_its_own(pipeline: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_dataset(pipeline, out, ExportOptions(max_file_bytes="1MiB"), RUN)
    assert (out / "text_encoder/model.safetensors").exists()
    assert not (out / "text_encoder/model.safetensors.index.json").exists()
    expected = of_folder(loaded(pipeline), "vae.")
    index = json.loads((out / "vae/diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (out / "vae").glob("*.safetensors"))
    assert files == [
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
    ]
    found = {name: load_file(out / "vae" / file)[name] for name, file in sorted(index["weight_map"].items())}
    assert same(found, expected)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())


@pytest.mark.slow
def test_sentence_transformers_opens_a_model_with_a_dense_layer_of_its_own(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    source, dataset, out = tmp_path / "source", str(tmp_path / "dataset"), tmp_path / "out"
    torch.manual_seed(0)
    chain = [modules.Transformer(open_checkpoint("minilm").uri), modules.Pooling(384), modules.Dense(384, 48)]
    original = SentenceTransformer(modules=chain, device="cpu")
    original.save(str(source))
    quantize(str(source), dataset, QuantizationConfig("int8"), RUN)
    export_dataset(dataset, out, ExportOptions(), RUN)
    expected = loaded(dataset)
    assert same(load_file(out / "2_Dense/model.safetensors"), of_folder(expected, "2_Dense."))
    opened = SentenceTransformer(str(out), device="cpu")
    dense = opened[2].state_dict()
    assert same(dense, of_folder(expected, "2_Dense."))
    assert not torch.equal(dense["linear.weight"], original[2].state_dict()["linear.weight"])
    values = opened[0].auto_model.state_dict()
    assert len(values) >= 100
    assert all(torch.equal(value, expected[name]) for name, value in values.items())
    found, before = opened.encode(["two words"]), original.encode(["two words"])
    assert found.shape == (1, 48)
    assert float(np.abs(found - before).max()) < 0.05
