"""Tells by their names which layers are `Linear` modules: compressed-tensors and its readers quantize nothing else.

A checkpoint does not say. The names below are those that only belong to Linear modules in every family of transformers
5 that has a matrix of that name (tests/export/compressed_tensors/test_linear.py compares); for any other name it is not
known, and nothing is guessed.
"""

from __future__ import annotations

import re

_DIGITS = re.compile(r"\d+")

# Name parts before `.weight`, with # for digits.
_NAMES = """
    Wi Wk Wo Wq Wqkv Wv attention_out audio_lm_head classifier cross_modal_image_transform
    cross_modal_text_transform ctc_head decoder decoder_pred dense dense# dense_# dense_#h_to_h dense_h_to_#h
    dense_prediction down_proj dt_proj f_a_proj f_b_proj f_proj fc fc# fc_in fc_out feature_projection ffn
    ffn_output ffw_layer_# final_proj final_projection g_a_proj g_b_proj g_proj gate_proj gate_up_proj
    generator_lm_head head in_proj in_proj_a in_proj_b in_proj_ba in_proj_qkv in_proj_qkvz in_proj_z
    intermediate_dense k k_lin k_proj key key_global key_proj kv_a_proj_with_mqa kv_b_proj kv_proj
    language_projection lin# linear linear# linear_# linear_fc# linear_in linear_k linear_out linear_pos
    linear_q linear_v lm_head lm_loss mlp_fc# multi_modal_projector multimodal_projector o o_a_proj o_b_proj
    o_proj out out_lin out_proj output output_dense output_layer output_proj output_projection
    per_layer_input_gate per_layer_model_projection per_layer_projection pointwise_conv# pooler pre_projection
    proj proj# proj_down proj_in proj_out proj_up project_in project_out project_q projection projection_layer
    projector q q_a_proj q_b_proj q_gate_proj q_lin q_proj qkv qkv_proj query query_global query_key_value
    query_proj r_proj receptance reduction relative_k_proj seq_relationship temporal_dense text_proj
    text_projection to_k to_kv to_out to_q to_v up_proj v v_lin v_proj value value_global value_proj vision_proj
    vision_projection visual_projection vocab_projector vocab_transform w# weights_proj wi wi_# wk wo wq wq_b wv
    x_proj
"""
_LINEAR = frozenset(_NAMES.split())
# A Linear in these families, and in others a `Conv1D`, which stores its weight as [in, out].
_LINEAR_OF = dict.fromkeys(
    ("c_attn", "c_fc", "c_proj", "q_attn"), frozenset({"bridgetower", "gpt_bigcode", "gpt_neo", "starcoder2"})
)
_NO_LINEAR_AT_ALL = frozenset({"ibert"})  # has a class of its own instead
_EMBEDDINGS = frozenset({"wte", "wpe", "shared", "pos_emb", "w"})
# Linear modules in spite of their names.
_OF_EMBEDDINGS = frozenset(
    {"embed_out", "embedding_hidden_mapping_in", "embeddings_project", "patch_embedding"}
)

EMBEDDING = "an embedding, which transformers does not load quantized"
CONV1D = "a Conv1D, which stores its weight transposed"
CONVOLUTION = "not a matrix but a convolution, or the matrices of several experts"
NO_MODULE = "no module's weight"
UNKNOWN = "not known by its name to be a Linear"


def why_not_linear(name: str, shape: tuple[int, ...], model_type: str) -> str | None:
    """Returns why a layer is not a Linear, or may not be one; None if it is. model_type: that of the model's config."""
    module, _, last = name.rpartition(".")
    if last != "weight":
        return NO_MODULE
    parent, _, own = module.rpartition(".")
    if _is_embedding(own) or (own.isdigit() and _is_embedding(parent.rpartition(".")[2])):
        return EMBEDDING
    if len(shape) != 2:
        return CONVOLUTION if len(shape) > 2 else NO_MODULE
    if model_type in _NO_LINEAR_AT_ALL:
        return UNKNOWN
    if own in _LINEAR_OF:
        return None if model_type in _LINEAR_OF[own] else CONV1D
    # a module in a list or a Sequential is named by its number
    is_known = own.isdigit() or own in _OF_EMBEDDINGS or _DIGITS.sub("#", own) in _LINEAR
    return None if is_known else UNKNOWN


def _is_embedding(own: str) -> bool:
    return own in _EMBEDDINGS or ("embed" in own and own not in _OF_EMBEDDINGS)
