"""Tiny models with a tokenizer of a thousand words, and datasets of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.texts import read_texts

KEPT = QuantizationConfig("int8", mixed_precision_layers=["*"])
TEXTS = read_texts("builtin:held-back").items[::16]  # 25 texts, from 20 domains
VOCABULARY = 1000
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of word pieces like BERT's, which puts texts between [CLS] and [SEP]."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = [word for text in TEXTS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
    found = Tokenizer(models.WordPiece(_vocabulary(words), unk_token="[UNK]"))  # noqa: S106
    found.normalizer, found.pre_tokenizer = normalizer, splitter
    found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=found, model_max_length=512, **names)


def _vocabulary(words: Sequence[str]) -> dict[str, int]:
    """{piece: id}: single characters, then whole words, beginnings and ends, the most frequent first. (A trainer of
    tokenizers would number equally frequent pieces in a different order each time.)"""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({mark + letter for word in words for letter in word for mark in ("", "##")})
    pieces = Counter(
        piece for word in words for at in range(2, len(word)) for piece in (word[:at], "##" + word[at:])
    )
    pieces.update(word for word in words for _ in range(2))
    common = sorted(pieces.keys() - set(letters), key=lambda piece: (-pieces[piece], piece))
    return {piece: number for number, piece in enumerate([*special, *letters, *common][:VOCABULARY])}


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Saves the model with weights that 16 bits hold exactly, so that a dataset that keeps them has the same ones."""
    round_to_half(model)
    model.to(dtype).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def round_to_half(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().half())


def save_llama(folder: Path) -> Path:
    """An untrained Llama with weights large enough that some tokens are likelier than others."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, initializer_range=0.3, **SIZES)
    return save(LlamaForCausalLM(config), folder, torch.bfloat16)


def save_tied_llama(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A Llama whose embedding is the output head too."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=True,
        **SIZES,
    )
    return save(LlamaForCausalLM(config), folder, dtype)


def save_bert(folder: Path, kind: Any = BertModel, **sizes: Any) -> Path:
    torch.manual_seed(1)
    values = {"vocab_size": VOCABULARY, "initializer_range": 0.3, **SIZES, **sizes}
    return save(kind(BertConfig(**values)), folder)


def save_masked_bert(folder: Path) -> Path:
    """A BERT with a masked-LM head, which embeddings do not need."""
    return save_bert(folder, BertForMaskedLM)


def save_sentence_model(folder: Path, mode: str = "cls") -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    bert = save_bert(folder.parent / f"{folder.name}-bert")
    chain = [
        modules.Transformer(str(bert)),
        modules.Pooling(SIZES["hidden_size"], pooling_mode=mode),
        modules.Dense(SIZES["hidden_size"], 24),
        modules.Normalize(),
    ]
    model = SentenceTransformer(modules=chain, device="cpu")
    round_to_half(model)
    model.save(str(folder))
    return folder


def quantize(source: Path, target: Path, config: QuantizationConfig = KEPT, **run: Any) -> Path:
    ArrowQuantizer(config, RunConfig(engine="inline", **run)).quantize(source, target)
    return target
