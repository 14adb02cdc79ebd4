"""Models of other kinds: experts, layers that are stored transposed, blocks that do not form a chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
)

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader, calibrate
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
    assert any("no input reached" in note for note in found.notes)


def test_a_model_with_experts_is_quantized_by_what_its_calibration_wrote(tmp_path: Path) -> None:
    source, out = save_mixtral(tmp_path / "source"), tmp_path / "out"
    config = INT4.replace(method="gptq", hessians=str(out))
    found = calibrate(source, out, [*TEXTS], quantize=config)
    parts = {layer.name: layer.parts for layer in found.layers}
    assert parts[f"{EXPERT}0.w1.weight"] == ("hessian", "cross")
    assert parts["model.layers.0.self_attn.q_proj.weight"] == ("hessian", "cross")
    report = ArrowQuantizer(config, RunConfig(engine="inline")).quantize(source, tmp_path / "target")
    assert any("mse instead of gptq" in note and "experts" in note for note in report.notes)


def test_experts_get_the_original_s_tokens_on_the_quantized_path_too(tmp_path: Path) -> None:
    """H and C of an expert are of the tokens that the original's router sends to it, as each path has them: the last
    block's, of a model whose layers before it are as quantize made them. At 2 bits its own router differs."""
    source, out = save_mixtral(tmp_path / "source"), tmp_path / "out"
    by = QuantizationConfig("int2", per_channel=False, group_size=16, method="gptq", hessians=str(out))
    calibrate(source, out, [*TEXTS], quantize=by)
    ArrowQuantizer(by, RunConfig(engine="inline")).quantize(source, tmp_path / "target")
    options: Any = {"dtype": torch.float32, "experts_implementation": "eager"}
    original, quantized = (MixtralForCausalLM.from_pretrained(source, **options).eval() for _ in range(2))
    fill_attention(quantized, tmp_path / "target")
    x, index = routed_hidden(original, source)
    y, own = routed_hidden(quantized, source)
    assert (index != own).mean() > 0.02
    tensors, start = read(out), "model.layers.0.block_sparse_moe.experts."
    for expert in range(2):
        rows = (index == expert).any(-1)
        for part, one in (("hessian", y), ("cross", x)):
            expected = mean_product(one[rows], y[rows])
            found = tensors[f"{start}{expert}.w1.weight.{part}"]
            np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def fill_attention(model: Any, target: Path) -> None:
    """What lies before the first block's experts gets the dataset's values."""
    loader = WeightLoader(target)
    names = [f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qkvo"]
    wanted = [*names, "model.embed_tokens.weight"]
    model.load_state_dict({name: loader.read(name).float() for name in wanted}, strict=False)


def routed_hidden(model: Any, source: Path) -> tuple[np.ndarray, np.ndarray]:
    """What goes into the first block's experts, and which of them each token is sent to."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    handle = model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda _, args: found.append((args[0].reshape(-1, 32).double().numpy(), args[1].numpy()))
    )
    inputs_of(model, source, TEXTS)
    handle.remove()
    return np.concatenate([one for one, _ in found]), np.concatenate([other for _, other in found])


def save_gpt2(folder: Path) -> Path:
    torch.manual_seed(4)
    return save(
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512)),
        folder,
    )


def test_layers_that_are_stored_the_other_way_round_have_statistics_of_their_rows(tmp_path: Path) -> None:
    """GPT-2 keeps [in, out]."""
    source, out = save_gpt2(tmp_path / "source"), tmp_path / "out"
    found = calibrate(source, out, [*TEXTS])
    assert (found.unfit, found.unseen) == ((), ())
    tensors = read(out)
    model = GPT2LMHeadModel.from_pretrained(source).eval()
    inputs = inputs_of(model, source, TEXTS)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        layer = f"transformer.h.1.{name}.weight"
        hessian = mean_product(inputs[layer], inputs[layer])
        np.testing.assert_allclose(tensors[f"{layer}.row_hessian"], hessian, atol=1e-4 * hessian.max())
    head = "transformer.wte.weight.hessian"  # which the embedding is
    assert {name for name in tensors if name.endswith(".hessian")} == {head}


def test_layers_that_are_stored_the_other_way_round_are_quantized_along_both_paths(tmp_path: Path) -> None:
    """C and D of GPT-2's last layer, by its modules, in the original and as quantize has made it."""
    source, out = save_gpt2(tmp_path / "source"), tmp_path / "out"
    by = INT4.replace(method="gptq", hessians=str(out))
    calibrate(source, out, [*TEXTS], quantize=by)
    report = ArrowQuantizer(by, RunConfig(engine="inline")).quantize(source, tmp_path / "target")
    assert not any("h.0" in note for note in report.notes)
    model = GPT2LMHeadModel.from_pretrained(source).eval()
    layer = "transformer.h.1.mlp.c_proj.weight"
    x, r = inputs_of(model, source, TEXTS)[layer], streams_of(model, source)
    loader = WeightLoader(tmp_path / "target")
    state = {name: loader.read(name).float() for name in [*loader.keys()] if name != layer}
    model.load_state_dict({name: state.get(name, value) for name, value in model.state_dict().items()})
    y, s = inputs_of(model, source, TEXTS)[layer], streams_of(model, source)
    tensors = read(out)
    for part, one, other in (("hessian", y, y), ("cross", x, y), ("residual", y, r - s)):
        expected = mean_product(one, other)
        np.testing.assert_allclose(
            tensors[f"{layer}.row_{part}"], expected, atol=2e-4 * np.abs(expected).max()
        )


def streams_of(model: Any, source: Path) -> np.ndarray:
    """What goes into the last block's second norm, which its feed-forward's result is added to."""
    found: list[np.ndarray] = []
    norm = model.transformer.h[1].ln_2
    handle = norm.register_forward_pre_hook(
        lambda _, args: found.append(args[0].reshape(-1, args[0].shape[-1]).double().numpy())
    )
    inputs_of(model, source, TEXTS)
    handle.remove()
    return np.concatenate(found)


def save_gpt_oss(folder: Path) -> Path:
    torch.manual_seed(7)
    config = GptOssConfig(
        **SIZES,
        intermediate_size=48,
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        num_key_value_heads=2,
        sliding_window=64,
    )
    return save(GptOssForCausalLM(config), folder)


def test_experts_that_are_stored_the_other_way_round_are_quantized_by_their_own_tokens(
    tmp_path: Path,
) -> None:
    source, out = save_gpt_oss(tmp_path / "source"), tmp_path / "out"
    by = INT4.replace(method="gptq", hessians=str(out))
    found = calibrate(source, out, [*TEXTS], quantize=by)
    parts = {layer.name: layer.parts for layer in found.layers}
    experts = "model.layers.0.mlp.experts."
    assert parts[f"{experts}gate_up_proj"] == parts[f"{experts}down_proj"] == ("row_hessian", "row_cross")
    tensors = read(out)
    assert tensors[f"{experts}gate_up_proj.row_hessian"].shape == (4, 32, 32)
    assert tensors[f"{experts}down_proj.row_cross"].shape == (4, 48, 48)
    report = ArrowQuantizer(by, RunConfig(engine="inline")).quantize(source, tmp_path / "target")
    assert not any("experts" in note for note in report.notes)


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


@pytest.mark.parametrize("config", [None, INT4], ids=["one path", "two paths"])
def test_layers_that_are_used_otherwise_are_told_from_those_that_no_input_came_to(
    tmp_path: Path, config: QuantizationConfig | None
) -> None:
    """Llama 4 multiplies with all of its experts at once."""
    torch.manual_seed(5)
    sizes = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "intermediate_size_mlp": 48}
    moe = {"num_local_experts": 2, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 1]}
    source = save(Llama4ForCausalLM(Llama4TextConfig(**SIZES, **sizes, **moe)), tmp_path / "source")
    found = calibrate(source, tmp_path / "out", [*TEXTS], quantize=config)
    experts = [f"model.layers.1.feed_forward.experts.{name}_proj" for name in ("down", "gate_up")]
    assert sorted(found.strange) == experts
    assert found.unseen == ()
    assert any(f"the model uses {experts[1]}" in note or experts[0] in note for note in found.notes)
    tensors = read(tmp_path / "out")
    assert all(tensors[f"{name}.unseen"].shape == (0,) for name in experts)


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
    assert any("do not form a chain" in note for note in found.notes)
