"""Models of other kinds: experts, layers that are stored the other way round, blocks that are no chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, calibrate
from tests.calibration.reference import inputs_of, mean_product, read
from tests.evaluation.models import TEXTS as EVERY
from tests.evaluation.models import VOCABULARY, save

TEXTS = EVERY[::3]

INT4 = QuantizationConfig("int4", per_channel=False, group_size=16)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
EXPERT = "model.layers.0.block_sparse_moe.experts."


def save_mixtral(folder: Path) -> Path:
    """With four experts, of which the router of the first block only takes the first two: of a and -a one is above the
    zeros of the others."""
    torch.manual_seed(3)
    moe = {"num_local_experts": 4, "num_experts_per_tok": 1, "num_key_value_heads": 2}
    source = save(MixtralForCausalLM(MixtralConfig(**SIZES, **moe, intermediate_size=48)), folder)
    path = source / "model.safetensors"
    tensors = load_file(path)
    gate = tensors["model.layers.0.block_sparse_moe.gate.weight"]
    gate[1] = -gate[0]
    gate[2:] = 0
    save_file(tensors, path, {"format": "pt"})
    return source


def routed(model: Any, source: Path) -> dict[int, np.ndarray]:
    """{expert of the first block: what it is given}, by the model's own router."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    found: dict[int, list[np.ndarray]] = {}
    mlp = model.model.layers[0].mlp

    def note(_: Any, args: Any) -> None:
        hidden, index = args[0].reshape(-1, args[0].shape[-1]), args[1]
        for expert in range(4):
            rows = (index == expert).any(-1)
            if rows.any():
                found.setdefault(expert, []).append(hidden[rows].double().numpy())

    handle = mlp.experts.register_forward_pre_hook(note)
    with torch.no_grad():
        for text in TEXTS:
            model(**tokenizer(text, return_tensors="pt"))
    handle.remove()
    return {expert: np.concatenate(values) for expert, values in found.items()}


def test_each_expert_has_the_statistics_of_its_own_tokens(tmp_path: Path) -> None:
    source = save_mixtral(tmp_path / "source")
    found = calibrate(source, tmp_path / "out", [*TEXTS])
    tensors = read(tmp_path / "out")
    model = MixtralForCausalLM.from_pretrained(source, dtype=torch.float32, experts_implementation="eager")
    inputs = routed(model.eval(), source)
    assert sorted(inputs) == [0, 1]
    tokens = {layer.name: layer.tokens for layer in found.layers}
    unseen = set()
    for expert in range(4):
        for weight in ("w1", "w3"):
            name = f"{EXPERT}{expert}.{weight}.weight"
            if expert not in inputs:
                unseen |= {name, f"{EXPERT}{expert}.w2.weight"}
                assert tensors[f"{name}.unseen"].shape == (0,)
                continue
            hessian = mean_product(inputs[expert], inputs[expert])
            np.testing.assert_allclose(tensors[f"{name}.hessian"], hessian, atol=1e-4 * hessian.max())
            assert tokens[name] == len(inputs[expert])
    assert {name for name in found.unseen if EXPERT in name} == unseen
    assert any("no input came to" in note for note in found.notes)


def test_a_model_with_experts_is_quantized_by_what_its_calibration_wrote(tmp_path: Path) -> None:
    source, out = save_mixtral(tmp_path / "source"), tmp_path / "out"
    config = INT4.replace(method="gptq", hessians=str(out))
    found = calibrate(source, out, [*TEXTS], quantize=config)
    parts = {layer.name: layer.parts for layer in found.layers}
    assert parts[f"{EXPERT}0.w1.weight"] == ("hessian",)  # no pairs of tokens for what is routed
    assert parts["model.layers.0.self_attn.q_proj.weight"] == ("hessian", "cross")
    report = ArrowQuantizer(config, RunConfig(engine="inline")).quantize(source, tmp_path / "target")
    assert any("mse instead of gptq" in note and "experts" in note for note in report.notes)


def test_layers_that_are_stored_the_other_way_round_are_listed_and_left_to_mse(tmp_path: Path) -> None:
    """GPT-2 keeps [in, out]: groups of a row lie along its outputs, and a Hessian of inputs would be the wrong one."""
    torch.manual_seed(4)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512)
    source, out = save(GPT2LMHeadModel(config), tmp_path / "source"), tmp_path / "out"
    by = INT4.replace(method="gptq", hessians=str(out))
    found = calibrate(source, out, [*TEXTS], quantize=by)
    assert len(found.rows_first) == 8
    assert found.unseen == ()
    assert not any(name.endswith(".hessian") for name in read(out))
    ArrowQuantizer(by, RunConfig(engine="inline")).quantize(source, tmp_path / "target")


def test_products_that_are_no_modules_are_seen(tmp_path: Path) -> None:
    """Falcon multiplies with the transposed weight itself."""
    torch.manual_seed(5)
    source = save(FalconForCausalLM(FalconConfig(**SIZES)), tmp_path / "source")
    calibrate(source, tmp_path / "out", [*TEXTS])
    tensors = read(tmp_path / "out")
    model = FalconForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    inputs = inputs_of(model, source, TEXTS)
    name = "transformer.h.1.mlp.dense_h_to_4h.weight"
    hessian = mean_product(inputs[name], inputs[name])
    np.testing.assert_allclose(tensors[f"{name}.hessian"], hessian, atol=1e-4 * hessian.max())


def test_blocks_that_are_no_chain_are_one_part(tmp_path: Path) -> None:
    """ALBERT's one block runs several times, and its layers see what all of these are given."""
    torch.manual_seed(6)
    config = AlbertConfig(**SIZES, intermediate_size=48, embedding_size=16)
    source = save(AlbertModel(config), tmp_path / "source")
    found = calibrate(source, tmp_path / "out", [*TEXTS])
    tensors = read(tmp_path / "out")
    inputs = inputs_of(AlbertModel.from_pretrained(source).eval(), source, TEXTS)
    name = "encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight"
    hessian = mean_product(inputs[name], inputs[name])
    np.testing.assert_allclose(tensors[f"{name}.hessian"], hessian, atol=1e-4 * hessian.max())
    assert any("no chain" in note for note in found.notes)
