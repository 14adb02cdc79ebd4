"""A model filled from a checkpoint is the one that from_pretrained makes, wherever the checkpoint is read from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from arrowquant_dist.config import Storage
from arrowquant_dist.dataset.prefetch import load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.errors import InvalidCheckpoint, SourceChanged
from arrowquant_dist.models.checkpoint import checkpoint_loads
from arrowquant_dist.models.kinds import kind_of_model
from arrowquant_dist.models.pair import opened_model, transformers_model
from tests.checkpoint.quantized_models import by_blocks, float8, save_model, scales
from tests.models.served import differences, quantize
from tests.servers.fixtures import Bucket

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
MIB = 1 << 20


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, **more))


def mixtral() -> Any:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, num_local_experts=3)
    )


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))


def filled(uri: Path | str, storage: Storage | None = None, memory_nbytes: int = 64 * MIB) -> Any:
    with opened_model(uri, storage or Storage(), memory_nbytes) as opened:
        return transformers_model(kind_of_model(opened.files), opened.source, None)[0]


def expected(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("made", [llama, mixtral, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_of_every_kind_of_layout(tmp_path: Path, made: Any, dtype: torch.dtype) -> None:
    made().to(dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    assert differences(filled(tmp_path), expected(tmp_path)) == []


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert differences(filled(tmp_path), expected(tmp_path)) == []


def test_a_pickle(tmp_path: Path) -> None:
    model = llama()
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert differences(filled(tmp_path), model.eval()) == []


def test_the_file_of_a_folder(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    assert differences(filled(tmp_path / "model.safetensors"), expected(tmp_path)) == []


def test_a_dataset_as_a_checkpoint_is_what_load_model_gives(tmp_path: Path) -> None:
    from arrowquant_dist import load_model

    llama().to(torch.bfloat16).save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "target")
    ours = filled(tmp_path / "target")
    assert differences(ours, load_model(tmp_path / "target", AutoModelForCausalLM, dtype=torch.float32)) == []


def test_codes_of_a_quantized_model_are_decoded_and_its_config_says_nothing_of_them(tmp_path: Path) -> None:
    model = llama().to(torch.bfloat16)
    model.config.architectures = ["LlamaForCausalLM"]
    state = model.state_dict()
    name = "model.layers.1.mlp.down_proj"
    codes, scale = float8(32, 48), scales(1, 1)
    tensors = {**state, f"{name}.weight": codes, f"{name}.weight_scale_inv": scale}
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
    save_model(tmp_path, tensors, quantization, **json.loads(model.config.to_json_string(use_diff=False)))
    ours = filled(tmp_path)
    expected_model = llama().eval()
    expected_model.load_state_dict({**state, f"{name}.weight": by_blocks(codes, scale, 128, 128)})
    assert differences(ours, expected_model) == []


def test_an_object_store_is_read_by_ranges_and_nothing_is_copied(bucket: Bucket, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="20KB")
    uri = f"{bucket.uri}/models/llama"
    bucket.objects.upload_folder(tmp_path, uri)
    assert differences(filled(uri, Storage(bucket.storage_options)), expected(tmp_path)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_budget_smaller_than_the_largest_layer_is_enough(tmp_path: Path, dtype: torch.dtype) -> None:
    sizes = {**SIZES, "vocab_size": 5000}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)).to(dtype)
    model.save_pretrained(tmp_path)
    with opened_model(tmp_path, Storage(), 100_000) as opened:
        ours, _ = transformers_model(kind_of_model(opened.files), opened.source, None)
        assert 0 < opened.source.budget.peak <= 100_000 < model.lm_head.weight.nbytes
    assert differences(ours, expected(tmp_path)) == []


def test_layers_without_a_place_are_told(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**SIZES, intermediate_size=48)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with opened_model(tmp_path, Storage(), 64 * MIB) as opened:
        model, left_over = transformers_model(kind_of_model(opened.files), opened.source, None)
    assert "cls.predictions.transform.dense.weight" in left_over
    assert type(model).__name__ == "BertModel"


@contextmanager
def loads_of(tmp_path: Path, memory_nbytes: int = 64 * MIB) -> Iterator[Any]:
    with checkpoint_loads(tmp_path, Storage(), memory_nbytes) as loads:
        yield loads


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, ticks: None) -> None:
    llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with pytest.raises(SourceChanged), loads_of(tmp_path) as loads:  # noqa: PT012
        layer = next(iter(loads.layers.values()))
        load_now(loads.decoded(Region.whole(layer), layer.dtype), loads.budget)
        path.write_bytes(path.read_bytes()[:-4] + b"abcd")


def test_layers_are_compared_piece_by_piece(tmp_path: Path) -> None:
    same = torch.arange(4096, dtype=torch.float32).reshape(64, 64)
    other = same.clone()
    other[63, 63] += 1
    save_model(tmp_path, {"a": same, "b": other, "c": other.clone() + 0})
    with loads_of(tmp_path, 8192) as loads:
        a, b = loads.layers["a"], loads.layers["b"]
        assert loads.differ(a, b)
        assert not loads.differ(a, a)


def test_float8_without_scales_is_refused_unless_it_is_said_to_have_none(tmp_path: Path) -> None:
    save_model(tmp_path, {"a.weight": float8(16, 16)})
    with pytest.raises(InvalidCheckpoint, match="whose scale is unknown"), loads_of(tmp_path):
        pass
    with checkpoint_loads(tmp_path, Storage(), MIB, ["a.weight"]) as loads:
        assert [*loads.layers] == ["a.weight"]
