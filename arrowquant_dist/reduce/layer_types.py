"""The part of a model that a layer belongs to, told by its name."""

from __future__ import annotations

import re

EMBEDDINGS = "embeddings"
ATTENTION = "attention"
FEED_FORWARD = "feed-forward"
NORM = "norm"
OTHER = "other"
LAYER_TYPES = (EMBEDDINGS, ATTENTION, FEED_FORWARD, NORM, OTHER)

# Segments that are a normalisation wherever they are: LayerNorm, input_layernorm, q_norm, ln_1, bn2.
_NORM = re.compile(r"(?:^|[./])(?:\w*norm(?!al)\w*|ln(?:\d+|_\w+)?|bn\d*)(?:[./]|$)", re.IGNORECASE)
# The module that encloses a layer; the innermost (last) one says what the layer is.
_ENCLOSING = re.compile(
    r"(?P<attention>attn|attention)"
    r"|(?P<feed_forward>mlp|feed_?forward|ffn|densereludense|experts?(?![a-z])|moe|router|(?<![a-z0-9])ff(?![a-z]))",
    re.IGNORECASE,
)
# Names in models that do not name an enclosing module.
_BARE_ATTENTION = re.compile(
    r"(?:^|\.)(?:w?(?:q|k|v|o|kv|qkv)(?:_proj|_lin)?|query_key_value)(?:\.|$)", re.IGNORECASE
)
_BARE_FEED_FORWARD = re.compile(
    r"(?:^|\.)(?:fc\d|w[123]|wi(?:_\d)?|(?:gate|up|down|gate_up)_proj|intermediate\.dense|layer\.\d+\.output\.dense"
    r"|dense_h_to_4h|dense_4h_to_h)(?:\.|$)",
    re.IGNORECASE,
)
_EMBEDDINGS = re.compile(
    r"embed|embd|(?:^|\.)(?:emb|wte|wpe|lm_head)(?:\.|$)|(?:^|\.)shared\.weight$|^output\.weight$"
    r"|(?:^|\.)predictions\.(?:decoder|bias)(?:\.|$)",
    re.IGNORECASE,
)


def layer_type(name: str) -> str:
    """One of LAYER_TYPES, from a name as in BERT, GPT-2, Llama, Mistral, Qwen, T5, Gemma and MoEs.

    The output head (`lm_head`) counts as embeddings: it is as large, and often the same tensor. A router or gate of
    experts counts as feed-forward. Poolers, classifiers, convolutions and names that no pattern matches are `other`.
    """
    if _NORM.search(name):
        return NORM
    enclosing = [match.lastgroup for match in _ENCLOSING.finditer(name)]
    if enclosing:
        return ATTENTION if enclosing[-1] == "attention" else FEED_FORWARD
    if _BARE_ATTENTION.search(name):
        return ATTENTION
    if _BARE_FEED_FORWARD.search(name):
        return FEED_FORWARD
    return EMBEDDINGS if _EMBEDDINGS.search(name) else OTHER
