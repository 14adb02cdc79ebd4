"""Models in the shape of llama: Llama, Mistral, Qwen2, Qwen3. Fields and names are those of transformers.

A model that llama.cpp would compute differently from its config.json is refused. Fields that are not checked here
change nothing that is computed, or matter only for training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from arrowquant_dist.config.checks import shown
from arrowquant_dist.errors import counted
from arrowquant_dist.export.gguf.architecture import Architecture, TensorPlace, Value
from arrowquant_dist.export.gguf.settings import Settings

LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_THETA = 10_000.0
_MISTRAL_WINDOW = 4096  # if config.json does not have the field


def llama_architecture(config: Settings, layers: Mapping[str, str]) -> Architecture:
    """Returns the architecture. config: config.json, whose `model_type` is one of LLAMA_TYPES. layers: {name in the
    model: name of the stored layer}, aliases included.

    Raises InvalidCheckpoint if a field is missing or wrong, or llama.cpp would compute something else.
    """
    model_type, blocks = config.word("model_type"), config.blocks("num_hidden_layers", len(layers))
    config.only("hidden_act", ("silu",), "silu")
    config.only("is_causal", (True,), default=True)
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads, head_rows = _heads(config, model_type)
    rope_fields, rope_factors = _rope(config, head_rows)
    if rope_factors and model_type.startswith("qwen"):
        raise config.unknown(
            f"rope_type: 'llama3' in a {model_type}"
        )  # llama.cpp has no factors among the tensors of these
    context, notes = _context(config, model_type)
    fields: dict[str, Value] = {
        "vocab_size": config.count("vocab_size"),
        "context_length": context,
        "embedding_length": width,
        "block_count": blocks,
        "feed_forward_length": config.count("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_rows,
        "attention.value_length": head_rows,
        "attention.layer_norm_rms_epsilon": config.real("rms_norm_eps", 1e-6),
        "rope.dimension_count": head_rows,
        **rope_fields,
    }
    prefix = "" if "embed_tokens.weight" in layers else "model."
    embedding = f"{prefix}embed_tokens.weight"
    is_tied = config.yes("tie_word_embeddings", default=False) or _same(layers, "lm_head.weight", embedding)
    tables = [
        f"{prefix}layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(config.count("num_hidden_layers"))
    ]
    places = dict(_places(config, model_type, prefix, head_rows))
    if not is_tied:
        # embedding models have no head; llama.cpp would then use the embedding as one
        shape = places[embedding].shape
        places["lm_head.weight"] = TensorPlace("output.weight", shape, optional=prefix == "")
    return Architecture(
        name=model_type if model_type.startswith("qwen") else "llama",
        fields=fields,
        places=places,
        embedding=embedding,
        vocabularies=("gpt2", "llama"),
        # tables that are computed, and a head that transformers never reads because it is the embedding
        left_out=(*tables, "lm_head.weight") if is_tied else (*tables,),
        rope_factors=rope_factors,
        notes=notes,
    )


def _same(layers: Mapping[str, str], name: str, other: str) -> bool:
    return name in layers and layers[name] == layers.get(other)


def _heads(config: Settings, model_type: str) -> tuple[int, int]:
    """Returns the number of key heads, and rows per head. Fields may be missing if transformers derives a default."""
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", heads if model_type == "llama" else None)
    if model_type != "qwen3" and not config.has("head_dim") and width % heads:
        raise config.wrong("num_attention_heads", f"a divisor of hidden_size, {width}")
    head_rows = config.count("head_dim", width // heads if model_type != "qwen3" else None)
    # llama.cpp assumes that all heads of qwen2 together are as wide as the model
    if head_rows % 2 or heads % kv_heads or (model_type == "qwen2" and heads * head_rows != width):
        raise config.unknown(
            f"{counted(heads, 'head')} of {counted(head_rows, 'value')} over {kv_heads} of keys, in a width of {width}"
        )
    return kv_heads, head_rows


def _places(
    config: Settings, model_type: str, prefix: str, head_rows: int
) -> Iterator[tuple[str, TensorPlace]]:
    width, inner, words = (config.count(x) for x in ("hidden_size", "intermediate_size", "vocab_size"))
    query = head_rows * config.count("num_attention_heads")
    key = head_rows * _heads(config, model_type)[0]
    yield f"{prefix}embed_tokens.weight", TensorPlace("token_embd.weight", (words, width))
    yield f"{prefix}norm.weight", TensorPlace("output_norm.weight", (width,), "F32")
    turns = head_rows if model_type in {"llama", "mistral"} else 0
    matrices = {
        "self_attn.q_proj": ("attn_q", query, width, turns),
        "self_attn.k_proj": ("attn_k", key, width, turns),
        "self_attn.v_proj": ("attn_v", key, width, 0),
        "self_attn.o_proj": ("attn_output", width, query, 0),
        "mlp.gate_proj": ("ffn_gate", inner, width, 0),
        "mlp.up_proj": ("ffn_up", inner, width, 0),
        "mlp.down_proj": ("ffn_down", width, inner, 0),
    }
    biased = _biased(config, model_type)
    for i in range(config.count("num_hidden_layers")):
        layer, block = f"{prefix}layers.{i}", f"blk.{i}"
        for module, (name, rows, columns, order) in matrices.items():
            yield (
                f"{layer}.{module}.weight",
                TensorPlace(f"{block}.{name}.weight", (rows, columns), head_rows=order),
            )
            if module in biased:
                yield (
                    f"{layer}.{module}.bias",
                    TensorPlace(f"{block}.{name}.bias", (rows,), "F32", head_rows=order),
                )
        yield f"{layer}.input_layernorm.weight", TensorPlace(f"{block}.attn_norm.weight", (width,), "F32")
        yield (
            f"{layer}.post_attention_layernorm.weight",
            TensorPlace(f"{block}.ffn_norm.weight", (width,), "F32"),
        )
        if model_type == "qwen3":
            yield (
                f"{layer}.self_attn.q_norm.weight",
                TensorPlace(f"{block}.attn_q_norm.weight", (head_rows,), "F32"),
            )
            yield (
                f"{layer}.self_attn.k_norm.weight",
                TensorPlace(f"{block}.attn_k_norm.weight", (head_rows,), "F32"),
            )


def _biased(config: Settings, model_type: str) -> tuple[str, ...]:
    """Returns the modules that have a bias."""
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    if model_type == "qwen2":
        return attention
    if model_type != "llama":
        config.only("attention_bias", (False,), default=False)
        config.only("mlp_bias", (False,), default=False)
        return ()
    of_attention = (*attention, "self_attn.o_proj") if config.yes("attention_bias", default=False) else ()
    of_mlp = (
        ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj") if config.yes("mlp_bias", default=False) else ()
    )
    return of_attention + of_mlp


def _context(config: Settings, model_type: str) -> tuple[int, tuple[str, ...]]:
    """Returns the context length in tokens, and notes. It is at most a sliding window: llama.cpp's llama attends to all
    tokens."""
    context = config.count("max_position_embeddings")
    kinds = config.fields.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise config.unknown(f"layer_types: {shown(kinds)}")
    if model_type != "mistral":
        config.only("use_sliding_window", (False,), default=False)
        return context, ()
    fields = {"sliding_window": _MISTRAL_WINDOW, **config.fields}
    window = Settings(config.file, fields).count("sliding_window", context)
    if window >= context:
        return context, ()
    note = f"context_length is {window}, the sliding window, not {context}: llama.cpp has no window for this family"
    return window, (note,)


def _rope(config: Settings, head_rows: int) -> tuple[dict[str, Value], tuple[float, ...]]:
    """Returns the metadata of rotary embeddings, and the divisors of llama3's scaling for each frequency, or ()."""
    # transformers 5 has all of it in rope_parameters; earlier versions have rope_theta and rope_scaling, which takes
    # precedence if both are there
    parts = [config.part(name) for name in ("rope_scaling", "rope_parameters")]
    own = next((part for part in parts if part is not None and part.fields), Settings(config.file, {}))
    if any(isinstance(value, dict) for value in own.fields.values()):
        raise config.unknown("rope_parameters that differ from layer to layer")
    for where in (own, config):
        where.only("partial_rotary_factor", (1.0, 1), 1.0)
    theta = own.real("rope_theta", config.real("rope_theta", _THETA))
    fields: dict[str, Value] = {"rope.freq_base": theta}
    kind = own.word("rope_type", own.word("type", "default"))
    if kind == "llama3":
        known = "original_max_position_embeddings"  # in config itself it takes precedence over the one in rope settings
        trained = config.count(known) if config.has(known) else own.count(known)
        return fields, _llama3_factors(own, theta, head_rows, trained)
    if kind == "linear":
        return {**fields, "rope.scaling.type": "linear", "rope.scaling.factor": own.real("factor")}, ()
    if kind != "default":
        raise config.unknown(f"rope_type: {shown(kind)}")
    return fields, ()


def _llama3_factors(rope: Settings, theta: float, head_rows: int, trained: int) -> tuple[float, ...]:
    """Returns the divisors of Llama 3.1's scaling: long waves are stretched by `factor`, short ones are not, and those
    in between are stretched by a value in between.

    trained: positions that the model was trained with before it was stretched.
    """
    factor = rope.real("factor")
    low, high = rope.real("low_freq_factor"), rope.real("high_freq_factor")
    if high <= low:
        raise rope.wrong("high_freq_factor", f"above low_freq_factor, {low}")
    factors = []
    for i in range(0, head_rows, 2):
        wave = 2 * math.pi * theta ** (i / head_rows)
        part = min(max((trained / wave - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - part) / factor + part))
    return tuple(factors)
