"""Anything that is not a dataset is named for what it is, in one sentence with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from arrowquant_dist import ExportOptions, WeightLoader, export_dataset, load_model, load_sentence_transformer
from arrowquant_dist.config import RunConfig
from arrowquant_dist.errors import ArrowQuantError
from tests.models.served import serve

WAYS: dict[str, Callable[[object], object]] = {
    "load_model": lambda target: load_model(target, AutoModel),  # type: ignore[arg-type]
    "load_sentence_transformer": load_sentence_transformer,  # type: ignore[dict-item]
    "WeightLoader": WeightLoader,  # type: ignore[dict-item]
    "export_dataset": lambda target: export_dataset(target, "out", ExportOptions()),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    served = serve(LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64)), folder)
    run = RunConfig(engine="inline", workers=1)
    export_dataset(served.target, folder / "safetensors", ExportOptions(), run)
    options = ExportOptions("compressed-tensors", requantize=True)
    export_dataset(served.target, folder / "compressed", options, run)
    (folder / "empty").mkdir()
    (folder / "ggufs").mkdir()
    (folder / "ggufs/model.gguf").write_bytes(b"GGUF")
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("place", "match"),
    [
        (
            "compressed",
            r"an export as compressed-tensors, not a dataset: transformers and vLLM open it; .*target",
        ),
        ("safetensors", r"an export as safetensors, not a dataset: transformers' from_pretrained opens it"),
    ],
)
def test_an_export_says_what_opens_it_and_what_it_was_made_of(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, place: str, match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArrowQuantError, match=match) as raised:
        WAYS[way](places / place)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["load_model", "load_sentence_transformer", "WeightLoader"])
@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("ggufs", "this is a checkpoint, not a dataset; quantize it first"),
        ("source", "this is a checkpoint, not a dataset; quantize it first"),
        ("empty", r"no manifest\.json and no \.parquet file here; check the spelling"),
        ("tarjet", "check the spelling"),
    ],
)
def test_other_places_are_refused_by_what_they_are(places: Path, way: str, place: str, match: str) -> None:
    with pytest.raises(ArrowQuantError, match=match) as raised:
        WAYS[way](places / place)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "gs://"])
def test_a_url_without_a_bucket_is_refused(way: str, uri: str) -> None:
    with pytest.raises(ArrowQuantError, match="the URL has no bucket; put one after ://") as raised:
        WAYS[way](uri)
    assert raised.value.exit_code == 2
