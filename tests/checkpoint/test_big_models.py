"""Checkpoints in the form of big models: every tensor of every file is a layer, tied to one, or part of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from arrowquant_dist import QuantizationConfig, WeightLoader
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.checkpoint.quantized_models import Tensors, assert_equal, by_blocks, float8, scales, values_of

HIDDEN, EXPERTS, FILES = 160, 4, 3
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}


def linear(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight": float8(rows, columns),
        f"{name}.weight_scale_inv": scales(-(-rows // 128), -(-columns // 128)),
    }


def norm(name: str, size: int = HIDDEN) -> Tensors:
    return {f"{name}.weight": torch.ones(size, dtype=torch.bfloat16)}


def attention(name: str) -> Tensors:
    return {
        **linear(f"{name}.q_a_proj", 64, HIDDEN),
        **norm(f"{name}.q_a_layernorm", 64),
        **linear(f"{name}.q_b_proj", 192, 64),
        **linear(f"{name}.kv_a_proj_with_mqa", 48, HIDDEN),
        **norm(f"{name}.kv_a_layernorm", 32),
        **linear(f"{name}.kv_b_proj", 256, 32),
        **linear(f"{name}.o_proj", HIDDEN, 128),
    }


def mlp(name: str) -> Tensors:
    return {
        **linear(f"{name}.gate_proj", 136, HIDDEN),
        **linear(f"{name}.up_proj", 136, HIDDEN),
        **linear(f"{name}.down_proj", HIDDEN, 136),
    }


def decoder_layer(number: int, *, moe: bool) -> Tensors:
    name = f"model.layers.{number}"
    tensors = (
        attention(f"{name}.self_attn")
        | norm(f"{name}.input_layernorm")
        | norm(f"{name}.post_attention_layernorm")
    )
    if not moe:
        return tensors | mlp(f"{name}.mlp")
    tensors[f"{name}.mlp.gate.weight"] = torch.ones(EXPERTS, HIDDEN, dtype=torch.bfloat16)
    tensors[f"{name}.mlp.gate.e_score_correction_bias"] = torch.arange(EXPERTS, dtype=torch.float32)
    for expert in range(EXPERTS):
        tensors |= mlp(f"{name}.mlp.experts.{expert}")
    return tensors | mlp(f"{name}.mlp.shared_experts")


def deepseek_v3() -> Tensors:
    """A dense layer, one of experts, and a head for the next token but one, which no count of layers includes."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(300, HIDDEN, generator=generator).to(torch.bfloat16)
    mtp = "model.layers.2"
    return {
        "model.embed_tokens.weight": embedding,
        **decoder_layer(0, moe=False),
        **decoder_layer(1, moe=True),
        **decoder_layer(2, moe=True),
        f"{mtp}.embed_tokens.weight": embedding.clone(),
        **norm(f"{mtp}.enorm"),
        **norm(f"{mtp}.hnorm"),
        f"{mtp}.eh_proj.weight": torch.ones(HIDDEN, 2 * HIDDEN, dtype=torch.bfloat16),
        **norm(f"{mtp}.shared_head.norm"),
        f"{mtp}.shared_head.head.weight": (embedding * 2).clone(),
        **norm("model.norm"),
        "lm_head.weight": embedding * 2,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In several files, scales in other files than their codes."""
    folder = tmp_path_factory.mktemp("deepseek-v3")
    tensors = deepseek_v3()
    files = [f"model-{i + 1:05d}-of-{FILES:05d}.safetensors" for i in range(FILES)]
    where = {name: files[i % FILES] for i, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def names_in_headers(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def test_every_name_of_every_header_is_there_once(model: Path) -> None:
    checkpoint = open_checkpoint(str(model))
    names = [*(layer.name for layer in checkpoint.layers), *checkpoint.aliases, *checkpoint.decoded]
    assert len(names) == len(set(names))
    assert set(names) == names_in_headers(model) == deepseek_v3().keys()
    assert all(name.endswith("_scale_inv") for name in checkpoint.decoded)
    mtp = "model.layers.2"
    assert {frozenset(pair) for pair in checkpoint.aliases.items()} == {
        frozenset(("model.embed_tokens.weight", f"{mtp}.embed_tokens.weight")),
        frozenset(("lm_head.weight", f"{mtp}.shared_head.head.weight")),
    }
    codes = sum(name.endswith("_scale_inv") for name in checkpoint.decoded)
    assert checkpoint.notes == (f"decoded from float8_e4m3fn codes and scales to bfloat16: {codes} layers",)


def test_the_dataset_gives_every_layer_of_the_model_and_no_scales(model: Path, tmp_path: Path) -> None:
    tensors = deepseek_v3()
    target = str(tmp_path / "int8")
    quantize(str(model), target, QuantizationConfig(), RunConfig(engine="inline"))
    expected = {name for name in tensors if not name.endswith("_scale_inv")}
    published = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert published == {key: value for key, value in CONFIG.items() if key != "quantization_config"}
    loaded = dict(WeightLoader(target))
    assert loaded.keys() == expected
    for name, values in loaded.items():
        source = tensors[name]
        if source.dtype == torch.float8_e4m3fn:
            source = by_blocks(source, tensors[f"{name}_scale_inv"], 128, 128)
        assert values.shape == source.shape
        limit = source.float().abs().amax(-1, keepdim=True) / 127 if source.ndim > 1 else torch.zeros(1)
        assert ((values.float() - source.float()).abs() <= 0.6 * limit + source.float().abs() / 128).all(), (
            name
        )


def test_the_layers_are_the_decoded_model_s(model: Path) -> None:
    tensors = deepseek_v3()
    for name, values in values_of(open_checkpoint(str(model))).items():
        scale = tensors.get(f"{name}_scale_inv")
        assert_equal(values, tensors[name] if scale is None else by_blocks(tensors[name], scale, 128, 128))


def test_a_head_that_config_ties_is_just_not_there(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    checkpoint = open_checkpoint(str(tmp_path))
    assert [layer.name for layer in checkpoint.layers] == ["model.embed_tokens.weight"]
    assert checkpoint.aliases == {}


def test_an_index_that_names_a_scale_that_no_file_has_is_an_error(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    index = json.loads((model / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.9.weight_scale_inv"] = f"model-00001-of-{FILES:05d}.safetensors"
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        InvalidCheckpoint, match=r"1 tensor that it names is in none of its files: model.layers.9"
    ):
        open_checkpoint(str(tmp_path))


def test_scales_and_pairs_on_their_own_come_through(tmp_path: Path) -> None:
    tensors = {
        "powers": torch.arange(64, dtype=torch.uint8).reshape(8, 8).view(torch.float8_e8m0fnu),
        "pairs": torch.arange(64, dtype=torch.uint8).reshape(8, 8).view(torch.float4_e2m1fn_x2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    target = str(tmp_path / "int8")
    config = QuantizationConfig(unscaled_float8=["*"])
    report = quantize(str(tmp_path), target, config, RunConfig(engine="inline")).report
    assert report is not None
    for name, values in WeightLoader(target):
        assert_equal(values, tensors[name])


def test_copies_of_codes_and_scales_are_tied(tmp_path: Path) -> None:
    codes = {"model.embed_tokens.weight": float8(300, 64), "model.embed_tokens.weight_scale": scales(300, 1)}
    copies = {name.replace("model.embed_tokens", "lm_head"): tensor.clone() for name, tensor in codes.items()}
    save_file({**codes, **copies}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    assert len(checkpoint.layers) == len(checkpoint.aliases) == 1
    copies["lm_head.weight_scale"][7] *= 2
    save_file({**codes, **copies}, tmp_path / "model.safetensors")
    assert open_checkpoint(str(tmp_path)).aliases == {}


# -- blocks of layers that are larger than a worker -------------------------------------------------------------------

MIB, GIB = 1 << 20, 1 << 30


def sparse_model(folder: Path, **shapes: tuple[int, ...]) -> Path:
    """bfloat16 layers of these shapes in a file that is all holes."""
    header, stop = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [stop, stop + nbytes]}
        stop += nbytes
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + stop)
    return path


def test_an_embedding_of_thirty_gb_is_planned_in_blocks_that_fit(tmp_path: Path) -> None:
    rows, columns = 1_000_000, 16_384
    path = sparse_model(tmp_path, embed=(rows, columns))
    assert path.stat().st_size > 30 * GIB
    plan = make_plan(open_checkpoint(str(path)), QuantizationConfig(), RunConfig())
    blocks = list(plan.blocks)
    assert sum(block.rows for block in blocks) == rows
    assert {block.columns for block in blocks} == {columns}
    assert max(block.source_nbytes for block in blocks) <= 64 * MIB
    assert max(block.rows for block in blocks) - min(block.rows for block in blocks) <= 1
    assert all(shard.source_nbytes <= 512 * MIB for shard in plan.shards)
    assert path.stat().st_blocks * 512 < MIB  # nothing was written into the holes


@pytest.mark.parametrize(
    ("name", "shape", "matrix"),
    [
        ("conv1d", (512, 256, 5), (512, 1280)),
        ("patch_embed", (1024, 3, 14, 14), (1024, 588)),
        ("model.mlp.experts.gate_up_proj", (8, 256, 2048), (2048, 2048)),
        ("model.mlp.experts.0.w", (256, 2048), (256, 2048)),
    ],
)
def test_rows_of_convolutions_and_experts(
    tmp_path: Path, name: str, shape: tuple[int, ...], matrix: tuple[int, int]
) -> None:
    path = sparse_model(tmp_path, **{name: shape})
    plan = make_plan(open_checkpoint(str(path)), QuantizationConfig(), RunConfig(block_bytes=64 << 10))
    blocks = list(plan.blocks)
    assert (sum(block.rows for block in blocks), blocks[0].columns) == matrix
    assert len(blocks) > 1
    assert all(block.source_nbytes <= 64 << 10 for block in blocks)
    assert all(block.shape == (block.rows, *shape[block.spec.row_dims :]) for block in blocks)
    starts = [block.row_start for block in blocks]
    assert starts == [sum(block.rows for block in blocks[:i]) for i in range(len(blocks))]
