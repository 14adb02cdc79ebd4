"""A transformers model whose weights stay codes gives what the decoded model gives."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from arrowquant_dist import QuantizationConfig, WeightLoader, load_codes_into, load_model
from arrowquant_dist.config.choices import QuantType
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules import QuantEmbedding, QuantLinear, QuantWeight
from tests.benchmarks.serving import MEASURED, RESIDENT_MB
from tests.conftest import CHECKOUT
from tests.models.served import quantize

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48}
TOKENS = torch.tensor([[3, 9, 27, 81, 5, 15], [90, 2, 4, 8, 16, 32]])


def llama(**options: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, **options))


def config_of(quant_type: QuantType, **options: Any) -> QuantizationConfig:
    return QuantizationConfig(quant_type, per_channel=False, group_size=16, **options)


def target_of(model: PreTrainedModel, folder: Path, config: QuantizationConfig) -> Path:
    model.save_pretrained(folder / "source")
    quantize(folder / "source", folder / "target", config)
    return folder / "target"


def output(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(TOKENS)[0].float()  # type: ignore[no-any-return]


def are_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((ours - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))


def packed(model: torch.nn.Module) -> set[str]:
    return {
        name for name, module in model.named_modules() if isinstance(module, QuantLinear | QuantEmbedding)
    }


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("quant_type", ["int8", "int4", "int3", "int2"])
def test_it_gives_what_the_decoded_model_gives(
    tmp_path: Path,
    quant_type: QuantType,
    symmetric: bool,  # noqa: FBT001
) -> None:
    target = target_of(llama(), tmp_path, config_of(quant_type, symmetric=symmetric))
    ours = load_model(target, AutoModelForCausalLM, codes=True)
    assert are_close(output(ours), output(load_model(target, AutoModelForCausalLM)))
    assert len(packed(ours)) == 2 + 2 * 7
    assert not [name for name, tensor in ours.state_dict().items() if tensor.is_meta]


def test_in_bfloat16_it_stays_within_its_rounding(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int8"))
    ours = load_model(target, AutoModelForCausalLM, codes=True, dtype=torch.bfloat16)
    assert ours.dtype == ours.lm_head.weight.dtype == torch.bfloat16
    theirs = load_model(target, AutoModelForCausalLM, dtype=torch.bfloat16)
    assert are_close(output(ours), output(theirs), 2e-2)


@pytest.mark.parametrize(
    ("model", "model_class", "count"),
    [
        (lambda: BertForMaskedLM(BertConfig(**SIZES)), AutoModelForMaskedLM, 3 + 2 * 6 + 2),
        (
            lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3)),
            AutoModelForCausalLM,
            10,
        ),
        (lambda: Phi3ForCausalLM(Phi3Config(**SIZES, pad_token_id=0)), AutoModelForCausalLM, 10),
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)),
            AutoModelForCausalLM,
            3,
        ),
    ],
    ids=["bert", "mixtral", "phi3", "gpt2"],
)
def test_families_of_all_kinds_give_what_the_decoded_model_gives(
    tmp_path: Path, model: Any, model_class: Any, count: int
) -> None:
    """Of Mixtral the experts are decoded, of GPT-2 all matrices whose rows are inputs."""
    target = target_of(model(), tmp_path, config_of("int4"))
    ours = load_model(target, model_class, codes=True)
    assert are_close(output(ours), output(load_model(target, model_class)))
    assert len(packed(ours)) == count, sorted(packed(ours))


def test_tied_weights_are_one_set_of_codes(tmp_path: Path) -> None:
    target = target_of(llama(tie_word_embeddings=True), tmp_path, config_of("int4"))
    ours = load_model(target, AutoModelForCausalLM, codes=True)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert isinstance(ours.lm_head.weight, QuantWeight)
    assert are_close(output(ours), output(load_model(target, AutoModelForCausalLM)))


def test_it_generates_the_same_tokens(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    ours, theirs = (load_model(target, AutoModelForCausalLM, codes=codes) for codes in (True, False))
    assert torch.equal(ours.generate(TOKENS[:1], **settings), theirs.generate(TOKENS[:1], **settings))


def test_a_module_with_the_names_of_the_dataset_is_filled_without_transformers(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int3"))
    model = llama()
    assert load_codes_into(model, WeightLoader(target)) == ([], [])
    assert are_close(output(model), output(load_model(target, AutoModelForCausalLM)))


def test_activations_are_quantized_where_that_is_asked_for(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int8"))
    ours = load_model(target, AutoModelForCausalLM, codes=True, activations="int8")
    theirs = load_model(target, AutoModelForCausalLM)
    assert not are_close(output(ours), output(theirs))
    assert are_close(output(ours), output(theirs), 0.05)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activations": "int8"}, "can only be used with codes=True"),
        ({"codes": True, "activations": "int4"}, "activations is the text 'int4'"),
        ({"codes": "yes"}, "codes"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    target = target_of(llama(), tmp_path, config_of("int8"))
    with pytest.raises(InvalidConfig, match=match):
        load_model(target, AutoModel, leave_out=["lm_head"], **options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
@pytest.mark.parametrize("quant_type", ["int8", "int2"])
def test_codes_in_memory_take_little_more_than_themselves(tmp_path: Path, quant_type: QuantType) -> None:
    """A model of MiniLM's sizes, loaded and run once, seen from outside: 23 MB in int8 and 7 in int2."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    config = QuantizationConfig(quant_type, per_channel=quant_type == "int8", symmetric=quant_type == "int8")
    target = target_of(BertModel(BertConfig(**sizes, intermediate_size=1536)), tmp_path, config)
    command = [sys.executable, "-c", MEASURED, str(target)]
    done = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)
    assert int(done.stdout) <= RESIDENT_MB[quant_type] * 1e6


@pytest.mark.parametrize(
    "copied",
    [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],  # noqa: S301
)
def test_codes_are_not_saved_as_a_checkpoint_that_would_be_read_as_random_values(
    tmp_path: Path, copied: Callable[[Any], Any]
) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    model = copied(load_model(target, AutoModelForCausalLM, codes=True))
    with pytest.raises(InvalidConfig, match=r"cannot be saved .* arrowquant export"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("part", ["model", ""])
@pytest.mark.parametrize("copied", [lambda model: model, copy.deepcopy])
def test_what_needs_weights_as_tensors_is_refused(
    tmp_path: Path, copied: Callable[[Any], Any], part: str
) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    model = copied(load_model(target, AutoModelForCausalLM, codes=True)).get_submodule(part)
    with pytest.raises(InvalidConfig, match="cannot be resized; load the model without codes=True"):
        model.resize_token_embeddings(100)
    for refused in (model.save_pretrained, model.push_to_hub):
        with pytest.raises(InvalidConfig, match="cannot be saved"):
            refused("anywhere")


def test_a_model_without_codes_is_resized_and_saved(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    model = load_model(target, AutoModelForCausalLM)
    model.resize_token_embeddings(100, mean_resizing=False)
    model.save_pretrained(tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").lm_head.weight.shape == (100, 32)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_is_cast_gives_what_the_decoded_one_gives(tmp_path: Path, cast: torch.dtype) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    ours = load_model(target, AutoModelForCausalLM, codes=True).to(cast)
    theirs = load_model(target, AutoModelForCausalLM).to(cast)
    assert ours.eval()(TOKENS)[0].dtype == cast
    assert are_close(output(ours), output(theirs), 8 * torch.finfo(cast).eps + 1e-6)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
        lambda model: torch.compile(model, backend="eager", fullgraph=True),
        lambda model: torch.compile(model, backend="aot_eager"),
    ],
    ids=["deepcopy", "pickle", "compile", "compile aot"],
)
def test_a_copy_gives_the_same(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    torch.compiler.reset()
    target = target_of(llama(), tmp_path, config_of("int4"))
    model = load_model(target, AutoModelForCausalLM, codes=True).eval()
    with torch.no_grad():
        assert are_close(copied(model)(TOKENS)[0], model(TOKENS)[0])


@pytest.mark.parametrize("assign", [False, True])
def test_a_saved_state_dict_comes_back(tmp_path: Path, assign: bool) -> None:  # noqa: FBT001
    target = target_of(llama(), tmp_path, config_of("int4"))
    model = load_model(target, AutoModelForCausalLM, codes=True)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = copy.deepcopy(model)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), assign=assign)
    assert torch.equal(output(other), output(model))


@pytest.mark.parametrize("codes", [True, False])
def test_a_state_dict_of_values_and_one_of_codes_are_not_taken_for_each_other(
    tmp_path: Path,
    codes: bool,  # noqa: FBT001
) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    model, other = (load_model(target, AutoModelForCausalLM, codes=each) for each in (codes, not codes))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*embed_tokens\.weight"):
        other.load_state_dict(model.state_dict())


def test_an_adapter_around_its_layers_learns_what_it_learns_around_decoded_ones(tmp_path: Path) -> None:
    """Two low-rank matrices beside each q_proj, as adapters have them, with hooks before and after."""

    class Adapter(torch.nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer
            self.down, self.up = (
                torch.nn.Linear(layer.in_features, 4),
                torch.nn.Linear(4, layer.out_features),
            )

        def forward(self, values: torch.Tensor) -> Any:
            return self.layer(values) + self.up(self.down(values))

    target = target_of(llama(), tmp_path, config_of("int4"))
    found = []
    for codes in (True, False):
        torch.manual_seed(1)
        seen: list[str] = []
        model = load_model(target, AutoModelForCausalLM, codes=codes).requires_grad_(False)  # noqa: FBT003
        for layer in model.model.layers:
            layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
            layer.mlp.up_proj.register_forward_hook(lambda *_, seen=seen: seen.append("after"))
            layer.mlp.up_proj.register_forward_pre_hook(lambda *_, seen=seen: seen.append("before"))
        model(TOKENS, labels=TOKENS).loss.backward()
        assert seen == ["before", "after"] * 2
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(found[0]) == 2 * 4
    assert all(are_close(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_embeddings_that_are_given_get_their_gradient(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    found = []
    for codes in (True, False):
        model = load_model(target, AutoModelForCausalLM, codes=codes)
        given = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
        model(inputs_embeds=given, labels=TOKENS).loss.backward()
        found.append(given.grad)
    assert are_close(*found)


def test_a_model_on_the_meta_device_has_shapes(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int4"))
    model = load_model(target, AutoModelForCausalLM, codes=True).to("meta")
    assert model(TOKENS.to("meta"))[0].shape == (2, 6, 96)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attn_implementation": 5}, "attn_implementation is the number 5; pass a string"),
        ({"attn_implementation": ["sdpa"]}, "attn_implementation is the list"),
        ({"attn_implementation": {"": 5}}, "attn_implementation is the mapping"),
        ({"attn_implementation": "nope"}, "attn_implementation is the text 'nope', which .* leave it out"),
        ({"dtype": torch.int8}, "dtype is int8"),
        ({"dtype": "float31"}, "dtype is float31"),
        ({"torch_dtype": torch.float16}, "takes no torch_dtype: it is called dtype"),
        ({"device_map": "auto"}, r"takes no device_map: .* model\.to\(device\)"),
        ({"trust_remote_code": True}, "takes no trust_remote_code: code .* is not run"),
        ({"quantization_config": {}}, "takes no quantization_config: .* codes=True"),
        ({"load_in_8bit": True}, "takes no load_in_8bit: .* codes=True"),
        ({"revision": "main"}, "takes no revision: .* storage_options"),
        ({"no_such": 1}, r"takes no no_such: leave it out"),
    ],
)
def test_settings_of_from_pretrained_that_are_not_ours_say_what_is(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    target = target_of(llama(), tmp_path, config_of("int8"))
    with pytest.raises(InvalidConfig, match=match):
        load_model(target, AutoModelForCausalLM, **options)


def test_an_attention_by_part_of_the_model_is_taken(tmp_path: Path) -> None:
    target = target_of(llama(), tmp_path, config_of("int8"))
    model = load_model(target, AutoModelForCausalLM, attn_implementation={"": "eager"})
    assert model.config._attn_implementation == "eager"


def test_a_subfolder_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="subfolder"):
        load_model(tmp_path, AutoModelForCausalLM, subfolder=5)  # type: ignore[arg-type]
