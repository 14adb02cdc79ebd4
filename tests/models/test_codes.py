"""A model of transformers whose weights stay codes gives what the decoded model gives."""

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


def config_of(quant_type: str, **options: Any) -> QuantizationConfig:
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
def test_it_gives_what_the_decoded_model_gives(tmp_path: Path, quant_type: str, symmetric: bool) -> None:  # noqa: FBT001
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
        ({"activations": "int8"}, "goes with codes=True"),
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
def test_codes_in_memory_take_little_more_than_themselves(tmp_path: Path, quant_type: str) -> None:
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


def test_a_subfolder_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="subfolder"):
        load_model(tmp_path, AutoModelForCausalLM, subfolder=5)  # type: ignore[arg-type]
