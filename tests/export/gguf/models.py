"""Small transformers models, with tokenizers trained on a page of text, saved as checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "Hello, world!",
    "The dataset's weights are read back, 12345 of them, and it's DONE.",
    "def f(x):\n    return x ** 2  # squared\n\n\n",
    "  two spaces,\ttabs\r\nand 日本語, naïve café, Ünïcode, 😀 emoji",
    "x=1;y=22;z=333;w=4444;don't we'LL I'M",
]
_PAGE = """
A tokenizer learns from a page of text which letters stand together. The more often a pair of neighbours is seen, the
earlier it becomes a token of its own, and the tokens that were made first are those that make the others. So a page
about weather has tokens for rain, wind and cloud; a page about numbers, such as 3, 14, 159 or 2653, has few of them.
This page is about neither. It says again what a reader of it may have heard before: that the weights of a model are
rounded to a few bits, that each group of them has a scale, that a scale is a small number, and that whoever reads the
codes has to multiply them with it. Nobody's going to ask how often that's been said; they'll read it, and we've said
it, and I'd say it again. Words are repeated here so that there is something to learn: reader, reading, reads, read;
number, numbers, numbered; weight, weights, weighted; model, models, modelled; group, groups, grouped, regrouped.
for i in range(10):
    print(i, i * i, end="\\n")  # squares of numbers
if there is not enough of it, the trainer ends early, and the vocabulary has fewer words than it was asked for.
"""
_WORDS = 512
_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def save_model(
    folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast, **settings: Any
) -> PreTrainedModel:
    """Saves a model of width 256 with two layers and four heads, of which two share keys and values. Its next tokens
    differ in likelihood."""
    make_config, make_model = _CLASSES[kind]
    config = make_config(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 512,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "initializer_range": 0.06,
            "tie_word_embeddings": False,
            **settings,
        }
    )
    torch.manual_seed(7)
    model = make_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # random, like trained ones, instead of all ones or zeros
                parameter.add_(
                    torch.randn_like(parameter), alpha=0.2 if name.endswith("norm.weight") else 0.5
                )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def byte_pairs(kind: str = "llama3") -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of the kind `llama3`, `smaug` (the same, but words are not taken whole), `qwen2`, `gpt-2`
    or `smollm`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    regex = {"llama3": LLAMA3, "smaug": LLAMA3, "qwen2": QWEN2}.get(kind)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    if regex is not None:
        steps = [pre_tokenizers.Split(Regex(regex), "isolated"), by_bytes]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif kind == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), by_bytes]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = by_bytes
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=_WORDS,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pages(), trainer)
    if kind in {"llama3", "smaug"}:
        _begin_with(tokenizer, "<|begin|>")
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])


def sentencepieces(*, metaspace: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers writes Llama 2's: byte pairs with `▁`, with all pairs that make a token, in the order
    of the token's score.

    metaspace: use the form that transformers writes today instead of the earlier one.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # no token has a space inside
    trainer = trainers.BpeTrainer(vocab_size=_WORDS, show_progress=False)
    trained.train_from_iterator((line.strip() for page in _pages() for line in page.splitlines()), trainer)
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    special = ["<unk>", "<s>", "</s>"]
    every = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {text: number for number, text in enumerate(dict.fromkeys(every))}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    unknown = {"unk_token": special[0], "fuse_unk": True, "byte_fallback": True}
    made = Tokenizer(models.BPE(vocab, merges, **unknown))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = trained.normalizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    _begin_with(made, "<s>")
    roles = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def _begin_with(tokenizer: Tokenizer, text: str) -> None:
    number = tokenizer.token_to_id(text)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{text} $A", pair=f"{text} $A {text}:1 $B:1", special_tokens=[(text, number)]
    )


def _pages() -> list[str]:
    return [_PAGE, *TEXTS]
