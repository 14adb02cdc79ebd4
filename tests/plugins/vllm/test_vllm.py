"""The plugin in vLLM itself. It takes minutes, and an environment of 4 GB that the first run creates."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.plugins.vllm.folder import ServedAsCodes, ServedDecoded, write_model_folder
from tests.plugins.vllm.models import decoded, llama_config, mixtral_config, save
from tests.plugins.vllm.serving import FARTHEST, PROMPTS, Vllm, continued
from tests.servers.fixtures import Bucket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

INT8 = QuantizationConfig(mixed_precision_layers=["embed", "lm_head"], scale_dtype="bfloat16")
INT4 = QuantizationConfig("int4", per_channel=False, group_size=64, symmetric=False)
SMALL_FILES = ("config.json", "generation_config.json")


@pytest.fixture(scope="session")
def int8(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int8") / "target"
    ArrowQuantizer(INT8).quantize(llama, target)
    return target


def small_files(target: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in SMALL_FILES:
        (folder / name).write_bytes((target / name).read_bytes())
    return folder


def without(source: Path, name: str) -> None:
    """Takes a layer out of a checkpoint."""
    weights = load_file(source / "model.safetensors")
    del weights[name]
    save_file(weights, source / "model.safetensors", {"format": "pt"})


def flip(file: Path, at: int) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[at] ^= 1
    file.write_bytes(damaged)


def test_a_dataset_on_disk_answers_as_our_decoded_model(vllm: Vllm, int8: Path) -> None:
    prompts, ours = continued(decoded(int8))
    answer = vllm.answer(int8, prompts, load_format="arrowquant")
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= FARTHEST


def test_a_dataset_in_an_object_store_answers_as_our_decoded_model(
    vllm: Vllm, llama: Path, bucket: Bucket, tmp_path: Path
) -> None:
    """int4 with real zero points, the embeddings as well, which no other format that vLLM loads can hold."""
    target = f"{bucket.uri}/llama-int4"
    ArrowQuantizer(INT4, RunConfig(storage_options=bucket.storage_options)).quantize(llama, target)
    folder = small_files(llama, tmp_path / "folder")
    prompts, ours = continued(decoded(target, storage_options=bucket.storage_options))
    extra = {"target": target, "storage_options": bucket.storage_options, "memory_budget": "64MiB"}
    answer = vllm.answer(folder, prompts, load_format="arrowquant", model_loader_extra_config=extra)
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= FARTHEST
    assert sorted(path.name for path in folder.iterdir()) == sorted(SMALL_FILES)


def test_each_of_two_ranks_reads_its_own_rows(vllm: Vllm, tmp_path: Path) -> None:
    """q, k, v, gate, up, embedding and head are cut by rows. o and down are cut by columns, of which no fewer than all
    bytes can be verified."""
    config = llama_config(
        hidden_size=2048,
        intermediate_size=4096,
        num_hidden_layers=1,
        num_attention_heads=32,
        vocab_size=2048,
        initializer_range=0.025,
    )
    source, target = save(config, tmp_path / "source"), tmp_path / "target"
    ArrowQuantizer(INT8, RunConfig(compression="none")).quantize(source, target)
    prompts, ours = continued(decoded(target))
    answer = vllm.answer(target, prompts, load_format="arrowquant", tensor_parallel_size=2)
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= FARTHEST
    stored = {
        row["layer_name"]: row["data_nbytes"] for row in pq.read_table(target / "index.parquet").to_pylist()
    }
    by_columns = sum(nbytes for name, nbytes in stored.items() if "o_proj" in name or "down_proj" in name)
    wanted = by_columns + (sum(stored.values()) - by_columns) / 2
    assert len(answer.nbytes_read) == 2
    for nbytes in answer.nbytes_read:
        assert wanted <= nbytes <= 1.02 * wanted  # scales, digests, and whole chunks of the small k and v


def test_experts_are_loaded_one_by_one(vllm: Vllm, tmp_path: Path) -> None:
    source, target = save(mixtral_config(), tmp_path / "source"), tmp_path / "target"
    ArrowQuantizer(INT8).quantize(source, target)
    prompts, ours = continued(decoded(target))
    answer = vllm.answer(target, prompts, load_format="arrowquant")
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= FARTHEST


@pytest.mark.parametrize("way", ["decoded", "codes"])
def test_a_flipped_bit_ends_it_with_the_name_of_the_layer(
    vllm: Vllm, llama: Path, way: str, tmp_path: Path
) -> None:
    target, folder = tmp_path / "target", tmp_path / "folder"
    ArrowQuantizer(INT8, RunConfig(compression="none")).quantize(llama, target)
    write_model_folder(target, folder, ServedDecoded() if way == "decoded" else ServedAsCodes("int8"))
    row = pq.read_table(target / "index.parquet").to_pylist()[-3]
    flip(target / row["part"], row["data_offset"] + 1000)
    said = vllm.failure(folder, load_format="arrowquant")
    assert "CorruptWeights" in said
    assert row["layer_name"] in said


def test_a_flipped_bit_in_an_object_store_too(
    vllm: Vllm, llama: Path, bucket: Bucket, tmp_path: Path
) -> None:
    target, storage = f"{bucket.uri}/target", bucket.storage_options
    ArrowQuantizer(INT8, RunConfig(compression="none", storage_options=storage)).quantize(llama, target)
    write_model_folder(target, tmp_path / "folder", ServedAsCodes("int8"), RunConfig(storage_options=storage))
    row = pq.read_table(io.BytesIO(bucket.objects.get(f"{target}/index.parquet"))).to_pylist()[3]
    part = f"{target}/{row['part']}"
    damaged = bytearray(bucket.objects.get(part))
    damaged[row["data_offset"] + 1000] ^= 1
    bucket.objects.put(part, bytes(damaged))
    extra = {"storage_options": storage}
    said = vllm.failure(tmp_path / "folder", load_format="arrowquant", model_loader_extra_config=extra)
    assert "CorruptWeights" in said
    assert row["layer_name"] in said


@pytest.mark.parametrize(("file", "word"), [("index.parquet", b"data_offset"), ("manifest.json", b"index")])
def test_a_flipped_bit_in_what_tells_where_weights_are_ends_it_with_the_file_s_name(
    vllm: Vllm, llama: Path, file: str, word: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    ArrowQuantizer(INT8).quantize(llama, target)
    flip(target / file, (target / file).read_bytes().index(word))
    said = vllm.failure(target, load_format="arrowquant")
    assert "CorruptWeights" in said
    assert file in said


def test_the_config_of_another_model_is_refused_by_the_names_that_have_no_weights(
    vllm: Vllm, int8: Path, tmp_path: Path
) -> None:
    folder = small_files(int8, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    said = vllm.failure(folder, load_format="arrowquant", model_loader_extra_config={"target": str(int8)})
    assert "has parameters without weights in the dataset: model.layers.2." in said


@pytest.mark.parametrize("way", ["decoded", "codes"])
@pytest.mark.parametrize(
    "change", [{"intermediate_size": 256}, {"num_key_value_heads": 1}], ids=["intermediate size", "key heads"]
)
def test_a_config_with_smaller_sizes_is_refused(
    vllm: Vllm, int8: Path, change: dict[str, int], way: str, tmp_path: Path
) -> None:
    """vLLM itself takes as much of each weight as its parameter has room for."""
    folder = tmp_path / "folder"
    write_model_folder(int8, folder, ServedDecoded() if way == "decoded" else ServedAsCodes("int8"))
    config = json.loads((folder / "config.json").read_text())
    assert all(config[key] > value for key, value in change.items())
    (folder / "config.json").write_text(json.dumps(config | change))
    said = vllm.failure(folder, load_format="arrowquant")
    assert "takes only a part of what the dataset has: model.layers.0." in said


@pytest.mark.parametrize("way", ["decoded", "codes"])
@pytest.mark.parametrize("missing", ["self_attn.k_proj", "mlp.up_proj"])
def test_a_layer_that_is_missing_in_a_fused_parameter_is_noticed(
    vllm: Vllm, llama: Path, missing: str, way: str, tmp_path: Path
) -> None:
    """vLLM itself takes a parameter to be filled when any part of it is."""
    source, target, folder = tmp_path / "source", tmp_path / "target", tmp_path / "folder"
    shutil.copytree(llama, source)
    without(source, f"model.layers.1.{missing}.weight")
    ArrowQuantizer(INT8).quantize(source, target)
    write_model_folder(target, folder, ServedDecoded() if way == "decoded" else ServedAsCodes("int8"))
    said = vllm.failure(folder, load_format="arrowquant")
    assert re.search(r"lacks layers: model\.layers\.1\.\w+\.(qkv|gate_up)_proj\.weight", said)


def test_a_matrix_of_one_expert_that_is_missing_is_noticed(vllm: Vllm, tmp_path: Path) -> None:
    source, target = save(mixtral_config(), tmp_path / "source"), tmp_path / "target"
    without(source, "model.layers.1.block_sparse_moe.experts.2.w3.weight")
    ArrowQuantizer(INT8).quantize(source, target)
    said = vllm.failure(target, load_format="arrowquant")
    assert re.search(r"lacks layers: model\.layers\.1\.\S+\.w13_weight", said)


def test_vllm_loads_what_it_always_did_beside_the_plugin(vllm: Vllm, llama: Path) -> None:
    prompts, ours = continued(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).eval())
    assert vllm.answer(llama, prompts).same_as(ours) == PROMPTS


@pytest.mark.parametrize(
    "argument", [{"revision": "v2"}, {"tokenizer_revision": "v2"}, {"ignore_patterns": ["*.bin"]}]
)
def test_an_argument_that_cannot_be_honoured_is_refused(
    vllm: Vllm, int8: Path, argument: dict[str, object]
) -> None:
    (name,) = argument
    assert re.search(rf"{name}.* leave it out", vllm.failure(int8, load_format="arrowquant", **argument))
