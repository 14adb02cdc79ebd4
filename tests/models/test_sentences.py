"""A SentenceTransformer from a dataset gives the embeddings of its source's, filled with the decoded weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel

from arrowquant_dist import QuantizationConfig, RunConfig, load_sentence_transformer
from arrowquant_dist.errors import CorruptWeights, InvalidConfig, MissingDependency, ModelMismatch
from tests.datasets import manifest_of
from tests.models.served import Served, differences, quantize
from tests.servers.fixtures import Bucket

TEXTS = [
    "A kitten naps in the sun by the window.",
    "Quarterly revenue grew by eight percent.",
    "¿Dónde está?",
]


def decoded_folder(source: Path, target: Path, folder: Path) -> Path:
    """The source's folder with each part's weights as the loader gives them."""
    from safetensors.torch import load_file, save_file

    from arrowquant_dist import WeightLoader

    shutil.copytree(source, folder)
    loader = WeightLoader(target)
    for path in folder.rglob("model.safetensors"):
        part = path.parent.relative_to(folder).as_posix()
        prefix = "" if part == "." else f"{part.replace('/', '.')}."
        save_file({name: loader[prefix + name] for name in load_file(path)}, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Served:
    """A tiny BERT, pooled by its first token, with a Dense of its own weights, a LayerNorm, and prompts."""
    folder = tmp_path_factory.mktemp("sentences")
    bert = folder / "bert"
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=30522, **sizes)).save_pretrained(bert)
    for path in minilm.glob("*token*"):
        shutil.copy(path, bert)
    chain = [
        modules.Transformer(str(bert)),
        modules.Pooling(64, pooling_mode="cls"),
        modules.Dense(64, 48),
        modules.LayerNorm(48),
        modules.Normalize(),
    ]
    source, target = folder / "source", folder / "target"
    SentenceTransformer(modules=chain, prompts={"query": "query: "}, device="cpu").save(str(source))
    quantize(source, target, QuantizationConfig("int8", mixed_precision_layers=["embed"]))
    return Served(source, target, decoded_folder(source, target, folder / "decoded"))


@pytest.fixture
def copied(tiny: Served, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.target, tmp_path / "copied"))


def assert_same(ours: Any, theirs: Any, **options: Any) -> None:
    assert differences(ours, theirs) == []
    assert [type(module) for module in ours] == [type(module) for module in theirs]
    np.testing.assert_array_equal(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))


def test_every_module_is_that_of_the_source(tiny: Served) -> None:
    ours, theirs = (
        load_sentence_transformer(tiny.target),
        SentenceTransformer(str(tiny.decoded), device="cpu"),
    )
    assert_same(ours, theirs)
    assert_same(ours, theirs, prompt_name="query")
    assert ours.max_seq_length == theirs.max_seq_length


def test_minilm_is_pooled_and_normalized_as_it_was(minilm: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    quantize(minilm, target)
    ours = load_sentence_transformer(target, memory_budget="64MiB")
    theirs = SentenceTransformer(str(decoded_folder(minilm, target, tmp_path / "decoded")), device="cpu")
    assert_same(ours, theirs)
    original = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    assert (ours.encode(TEXTS) * original).sum(1).min() > 0.99


def test_dtype_is_that_of_the_model(tiny: Served) -> None:
    ours = load_sentence_transformer(tiny.target, dtype="bfloat16")
    theirs = SentenceTransformer(str(tiny.decoded), device="cpu", model_kwargs={"dtype": "bfloat16"})
    assert differences(ours, theirs) == []


def test_it_comes_from_an_object_store(bucket: Bucket, tiny: Served) -> None:
    uri = f"{bucket.uri}/models/sentences"
    bucket.objects.upload_folder(tiny.target, uri)
    ours = load_sentence_transformer(uri, storage_options=bucket.storage_options)
    assert_same(ours, SentenceTransformer(str(tiny.decoded), device="cpu"))


def test_a_flipped_bit_of_any_module_is_found(tiny: Served, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    from arrowquant_dist import ArrowQuantizer

    ArrowQuantizer(QuantizationConfig("int8"), RunConfig(compression="none")).quantize(tiny.source, raw)
    for name in ("2_Dense.linear.weight", "encoder.layer.1.output.dense.weight"):
        for part in manifest_of(raw)["parts"]:
            path = raw / part["path"]
            (data,) = [
                row["data"] for row in pq.ParquetFile(path).read().to_pylist() if row["layer_name"] == name
            ]
            sound = path.read_bytes()
            at = sound.index(data) + 5
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
            with pytest.raises(CorruptWeights) as caught:
                load_sentence_transformer(raw)
            assert caught.value.layer == name
            path.write_bytes(sound)


def test_a_folder_that_does_not_say_how_it_is_pooled_is_refused(copied: Path) -> None:
    (copied / "modules.json").unlink()
    with pytest.raises(InvalidConfig, match=r"there is no modules\.json"):
        load_sentence_transformer(copied)


@pytest.mark.parametrize("kind", ["os.system", "custom_st.Transformer"])
def test_a_module_of_others_is_not_run(copied: Path, kind: str) -> None:
    named = json.loads((copied / "modules.json").read_text())
    named[2]["type"] = kind
    (copied / "modules.json").write_text(json.dumps(named))
    with pytest.raises(InvalidConfig, match=f"{kind} is not one of sentence-transformers' own"):
        load_sentence_transformer(copied, verify=False)


@pytest.mark.parametrize("kind", ["CrossEncoder", "SparseEncoder"])
def test_a_model_of_another_kind_is_refused_by_name(copied: Path, kind: str) -> None:
    """sentence-transformers itself would make an encoder of it, with a pooling that nobody trained."""
    path = copied / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind}))
    with pytest.raises(InvalidConfig, match=f"it is a {kind}, not a SentenceTransformer; .* load_model"):
        load_sentence_transformer(copied, verify=False)


def test_layers_that_no_module_takes_are_refused(copied: Path) -> None:
    named = json.loads((copied / "modules.json").read_text())
    (copied / "modules.json").write_text(
        json.dumps([module for module in named if "Dense" not in module["path"]])
    )
    with pytest.raises(ModelMismatch, match=r"2_Dense\.linear\.weight"):
        load_sentence_transformer(copied, verify=False)


def test_without_the_package_it_says_which_one_to_install(
    monkeypatch: pytest.MonkeyPatch, tiny: Served
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependency, match=r"arrowquant-dist\[sentence-transformers\]"):
        load_sentence_transformer(tiny.target)


def test_progress_ends_at_all_bytes_of_every_module_and_nothing_else_is_shown(
    tiny: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[int, int, str]] = []
    model = load_sentence_transformer(tiny.target, progress=lambda *call: calls.append(call))
    total = sum(parameter.nbytes for parameter in model.parameters())
    assert calls[-1][:2] == (total, total)
    assert [call[0] for call in calls] == sorted({call[0] for call in calls})
    assert len({call[2] for call in calls}) == len([*model.parameters()])
    assert capfd.readouterr() == ("", "")
