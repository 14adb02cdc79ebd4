"""Layer names as the model families write them."""

from __future__ import annotations

import pytest

from arrowquant_dist.reduce.layer_types import layer_type

CASES = {
    "embeddings": [
        "embeddings.word_embeddings.weight",  # BERT
        "bert.embeddings.position_embeddings.weight",
        "embeddings.position_ids",
        "cls.predictions.decoder.weight",
        "model.embed_tokens.weight",  # Llama, Qwen, Mistral, Gemma
        "model.language_model.embed_tokens_per_layer.weight",  # Gemma 3n
        "lm_head.weight",
        "tok_embeddings.weight",  # Mistral's and Llama's own files
        "output.weight",
        "wte.weight",  # GPT-2
        "transformer.wpe.weight",
        "shared.weight",  # T5
        "model.shared.weight",  # BART
        "gpt_neox.embed_in.weight",
        "vision_tower.patch_embed.proj.weight",
        "token_embd.weight",
    ],
    "attention": [
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.0.attention.output.dense.bias",
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.3.self_attn.kv_a_proj_with_mqa.weight",  # DeepSeek
        "model.layers.3.self_attn.sinks",  # gpt-oss
        "model.layers.0.linear_attn.in_proj_qkvz.weight",  # Qwen3-Next
        "layers.0.attention.wq.weight",
        "h.0.attn.c_attn.weight",
        "transformer.h.0.self_attention.query_key_value.weight",  # Falcon
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.1.EncDecAttention.o.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "backbone.layers.5.mixer.q_proj.weight",  # Nemotron-H
        "transformer.h.0.mixer.Wqkv.weight",
        "distilbert.transformer.layer.0.attention.q_lin.weight",
    ],
    "feed-forward": [
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.output.dense.weight",
        "model.layers.3.mlp.gate_proj.weight",
        "model.layers.3.mlp.experts.17.down_proj.weight",  # Qwen MoE
        "model.layers.3.mlp.experts.gate_up_proj",  # fused
        "model.layers.3.mlp.experts.down_proj_bias",
        "model.layers.3.mlp.gate.weight",
        "model.layers.3.mlp.shared_expert_gate.weight",
        "model.layers.3.mlp.router.weight",
        "model.layers.0.block_sparse_moe.experts.0.w1.weight",  # Mixtral
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.feed_forward.router.weight",  # Llama 4
        "layers.0.feed_forward.w1.weight",
        "h.0.mlp.c_fc.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "encoder.block.0.layer.1.mlp.wo.weight",  # Switch
        "model.encoder.layers.0.fc1.weight",  # Whisper, OPT
        "distilbert.transformer.layer.0.ffn.lin1.weight",
        "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
        "backbone.layers.5.mixer.up_proj.weight",
        "attn_pool.mlp.fc1.weight",
    ],
    "norm": [
        "embeddings.LayerNorm.weight",
        "encoder.layer.0.attention.output.LayerNorm.bias",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.pre_feedforward_layernorm.weight",  # Gemma
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.kv_a_layernorm.weight",
        "model.norm.weight",
        "layers.0.attention_norm.weight",
        "layers.0.ffn_norm.weight",
        "h.0.ln_1.weight",
        "transformer.ln_f.weight",
        "encoder.block.0.layer.0.layer_norm.weight",
        "decoder.final_layer_norm.weight",
        "visual.bn1.running_mean",
    ],
    "other": [
        "pooler.dense.weight",
        "classifier.weight",
        "score.weight",
        "encoder.conv1.weight",
        "backbone.layers.0.mixer.in_proj.weight",  # Mamba
        "backbone.layers.0.mixer.A_log",
        "abnormal.weight",
        "expertise.weight",
        "",
        "\n<script>",
    ],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CASES.items() for name in names])
def test_a_layers_name_tells_its_type(kind: str, name: str) -> None:
    assert layer_type(name) == kind
