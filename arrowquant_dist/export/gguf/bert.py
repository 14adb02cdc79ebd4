"""BERT as in sentence-transformers and transformers: llama.cpp makes embeddings from its last layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from arrowquant_dist.export.gguf.architecture import Architecture, TensorPlace
from arrowquant_dist.export.gguf.settings import Settings

BERT_TYPES = ("bert",)
_NORMS = {"weight": ("weight", "gamma"), "bias": ("bias", "beta")}  # the first BERT had its own names


def bert_architecture(config: Settings, layers: Mapping[str, str]) -> Architecture:
    """Returns the architecture. config: config.json, whose `model_type` is `bert`. layers: as in
    `llama_architecture`."""
    config.only("hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh"), "gelu")
    config.only("position_embedding_type", ("absolute",), "absolute")
    config.only("is_decoder", (False,), default=False)
    config.only("is_causal", (False,), default=False)
    config.only("add_cross_attention", (False,), default=False)
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    if width % heads:
        raise config.wrong("num_attention_heads", f"a divisor of hidden_size, {width}")
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in layers else ""
    return Architecture(
        name="bert",
        fields={
            "vocab_size": config.count("vocab_size"),
            "context_length": config.count("max_position_embeddings"),
            "embedding_length": width,
            "block_count": config.blocks("num_hidden_layers", len(layers)),
            "feed_forward_length": config.count("intermediate_size"),
            "attention.head_count": heads,
            "attention.layer_norm_epsilon": config.real("layer_norm_eps", 1e-12),
            "attention.causal": False,
        },
        places=dict(_places(config, prefix, frozenset(layers))),
        embedding=f"{prefix}embeddings.word_embeddings.weight",
        vocabularies=("bert",),
        token_types=config.count("type_vocab_size", 2),
        left_out=(f"{prefix}pooler.dense.", f"{prefix}embeddings.position_ids", "cls."),
    )


def _places(config: Settings, prefix: str, names: frozenset[str]) -> Iterator[tuple[str, TensorPlace]]:
    width, inner = config.count("hidden_size"), config.count("intermediate_size")
    tables = {
        "word_embeddings": ("token_embd", config.count("vocab_size"), "matrix"),
        "position_embeddings": ("position_embd", config.count("max_position_embeddings"), "matrix"),
        "token_type_embeddings": (
            "token_types",
            config.count("type_vocab_size", 2),
            "F32",
        ),  # its first row is added
    }
    for module, (name, rows, stored) in tables.items():
        place = TensorPlace(f"{name}.weight", (rows, width), "F32" if stored == "F32" else "matrix")
        yield f"{prefix}embeddings.{module}.weight", place
    yield from _norm(f"{prefix}embeddings.LayerNorm", "token_embd_norm", width, names)
    matrices = {
        "attention.self.query": ("attn_q", width, width),
        "attention.self.key": ("attn_k", width, width),
        "attention.self.value": ("attn_v", width, width),
        "attention.output.dense": ("attn_output", width, width),
        "intermediate.dense": ("ffn_up", inner, width),
        "output.dense": ("ffn_down", width, inner),
    }
    for i in range(config.count("num_hidden_layers")):
        layer, block = f"{prefix}encoder.layer.{i}", f"blk.{i}"
        for module, (name, rows, columns) in matrices.items():
            yield f"{layer}.{module}.weight", TensorPlace(f"{block}.{name}.weight", (rows, columns))
            yield f"{layer}.{module}.bias", TensorPlace(f"{block}.{name}.bias", (rows,), "F32")
        yield from _norm(f"{layer}.attention.output.LayerNorm", f"{block}.attn_output_norm", width, names)
        yield from _norm(f"{layer}.output.LayerNorm", f"{block}.layer_output_norm", width, names)


def _norm(module: str, name: str, width: int, names: frozenset[str]) -> Iterator[tuple[str, TensorPlace]]:
    for ours, theirs in _NORMS.items():
        found = next((word for word in theirs if f"{module}.{word}" in names), ours)
        yield f"{module}.{found}", TensorPlace(f"{name}.{ours}", (width,), "F32")
