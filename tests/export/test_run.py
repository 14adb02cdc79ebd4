"""An export from end to end: its files have the values of the dataset, and the programs that they are for open them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.export import ExportOptions, export_dataset
from tests.export.datasets import loaded, made_dataset, same, tensors_of
from tests.sources import random_weights

RUN = RunConfig(engine="inline", workers=2)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("minilm") / "dataset"
    quantize("minilm", str(target), QuantizationConfig("int8"), RunConfig())
    return str(target)


@pytest.fixture(scope="module")
def out(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "model"
    export_dataset(minilm, str(folder), ExportOptions(), RUN)
    return folder


def test_the_safetensors_package_reads_what_our_loader_reads(minilm: str, out: Path) -> None:
    assert same(tensors_of(out), loaded(minilm))


def test_transformers_opens_it(minilm: str, out: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(out)
    expected = loaded(minilm)
    state = model.state_dict()
    assert len(state) >= 100
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert AutoTokenizer.from_pretrained(out)("two words")["input_ids"]


def test_sentence_transformers_opens_it(minilm: str, out: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(out), device="cpu")
    expected = loaded(minilm)
    assert all(torch.equal(value, expected[name]) for name, value in model[0].auto_model.state_dict().items())
    assert model.encode(["two words"]).shape == (1, 384)


def test_layers_in_several_row_blocks_and_files_come_out_whole(tmp_path: Path) -> None:
    dataset = made_dataset(tmp_path, random_weights(6, 512, 256, torch.bfloat16))
    options = ExportOptions(max_file_bytes="1MiB")
    made = export_dataset(dataset, str(tmp_path / "out"), options, RUN)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    found = tensors_of(tmp_path / "out")
    assert same(found, loaded(dataset))
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert len(files) == 2
    assert set(index["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert [file.path for file in made.record.files] == [
        *files,
        "model.safetensors.index.json",
        "config.json",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("gguf", r"options: must be an ExportOptions, not the text 'gguf'; .*ExportOptions\(format='gguf'\)"),
        (
            {"format": "gguf"},
            r"options: must be an ExportOptions, .*; convert it with ExportOptions\(\*\*…\)",
        ),
        (ExportOptions, r"pass an instance: ExportOptions\(\)"),
    ],
)
def test_what_is_no_options_is_refused_with_how_to_make_them(options: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=said):
        export_dataset(tmp_path / "dataset", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
