"""The plugin in vLLM itself: it takes minutes and an environment of 4 GB, which the first run makes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from tests.plugins.vllm.models import decoded, llama_config, mixtral_config, save
from tests.plugins.vllm.serving import PROMPTS, Vllm, continued
from tests.servers.fixtures import Bucket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

INT8 = QuantizationConfig(mixed_precision_layers=["embed", "lm_head"])
INT4 = QuantizationConfig("int4", per_channel=False, group_size=64, symmetric=False)
FARTHEST = 0.06
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


def test_a_flipped_bit_ends_it_with_the_name_of_the_layer(vllm: Vllm, llama: Path, tmp_path: Path) -> None:
    target, wrong = tmp_path / "target", "model.layers.1.mlp.down_proj.weight"
    ArrowQuantizer(INT8, RunConfig(compression="none")).quantize(llama, target)
    row = next(r for r in pq.read_table(target / "index.parquet").to_pylist() if r["layer_name"] == wrong)
    part = target / row["part"]
    damaged = bytearray(part.read_bytes())
    damaged[row["data_offset"] + 1000] ^= 1
    part.write_bytes(damaged)
    said = vllm.failure(target, load_format="arrowquant")
    assert "CorruptWeights" in said
    assert wrong in said


def test_the_config_of_another_model_is_refused_by_the_names_that_have_no_weights(
    vllm: Vllm, int8: Path, tmp_path: Path
) -> None:
    folder = small_files(int8, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    said = vllm.failure(folder, load_format="arrowquant", model_loader_extra_config={"target": str(int8)})
    assert "has parameters without weights in the dataset: model.layers.2." in said


def test_vllm_loads_what_it_always_did_beside_the_plugin(vllm: Vllm, llama: Path) -> None:
    prompts, ours = continued(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).eval())
    assert vllm.answer(llama, prompts).same_as(ours) == PROMPTS
