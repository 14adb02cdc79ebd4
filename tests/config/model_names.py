"""Names and shapes of one layer of published checkpoints, and which of these are not multiplied with activations.

For each family, KEPT has {name: (shape, reason)} and QUANTIZED has {name: shape}. Vectors are in neither.
"""

from __future__ import annotations

Shape = tuple[int, ...]

STATE, CONV, ROUTER = "state-space parameter", "short convolution", "MoE router"
TIME, LOGITS, POSITIONS = "recurrence parameter", "relative-position bias", "learned positions or tokens"

KEPT: dict[str, dict[str, tuple[Shape, str]]] = {
    "mamba": {
        "backbone.layers.0.mixer.A_log": ((1536, 16), STATE),
        "backbone.layers.0.mixer.conv1d.weight": ((1536, 1, 4), CONV),
    },
    "mamba2": {"backbone.layers.0.mixer.conv1d.weight": ((8448, 1, 4), CONV)},
    "jamba": {
        "model.layers.0.mamba.A_log": ((8192, 16), STATE),
        "model.layers.0.mamba.conv1d.weight": ((8192, 1, 4), CONV),
        "model.layers.1.feed_forward.router.weight": ((16, 4096), ROUTER),
    },
    "zamba": {
        "model.layers.0.mamba.A_log": ((2, 3712, 16), STATE),
        "model.layers.0.mamba.D": ((2, 3712), STATE),
        "model.layers.0.mamba.dt_proj_bias": ((2, 3712), "bias"),
        "model.layers.0.mamba.conv1d.weight": ((7424, 1, 4), CONV),
    },
    "nemotron_h": {
        "backbone.layers.0.mixer.conv1d.weight": ((6144, 1, 4), CONV),
        "backbone.layers.1.mixer.gate.weight": ((128, 2688), ROUTER),
    },
    "vmamba": {
        "layers.0.blocks.0.op.A_logs": ((768, 16), STATE),
        "layers.0.blocks.0.op.dt_projs_bias": ((4, 192), "bias"),
    },
    "recurrent_gemma": {
        "model.layers.0.temporal_block.conv_1d.weight": ((2560, 1, 4), CONV),
        "model.layers.0.temporal_block.rg_lru.input_gate_bias": ((10, 256), "bias"),
    },
    "lfm2": {"model.layers.0.conv.conv.weight": ((2048, 1, 3), CONV)},
    "qwen3_next": {
        "model.layers.0.linear_attn.conv1d.weight": ((8192, 1, 4), CONV),
        "model.layers.0.mlp.gate.weight": ((512, 2048), ROUTER),
    },
    "kimi_linear": {
        "model.layers.1.self_attn.q_conv1d.weight": ((4096, 1, 4), CONV),
        "model.layers.1.block_sparse_moe.gate.weight": ((256, 2304), ROUTER),
    },
    "rwkv6": {
        "blocks.0.att.time_faaaa": ((32, 64), TIME),
        "blocks.0.att.time_decay": ((32, 64), TIME),
        "blocks.0.att.time_mix_k": ((2, 2048), TIME),
    },
    "rwkv7": {"blocks.0.att.r_k": ((12, 64), TIME)},
    "minimax": {
        "model.layers.1.self_attn.diagonal_decay": ((1, 32, 256, 256), TIME),
        "model.layers.1.block_sparse_moe.gate.weight": ((8, 4096), ROUTER),
    },
    "striped_hyena": {
        "backbone.blocks.0.filter.poles": ((4096, 8, 1, 2), STATE),
        "backbone.blocks.0.filter.short_filter_weight": ((12288, 1, 3), CONV),
    },
    "mixtral": {"model.layers.0.block_sparse_moe.gate.weight": ((8, 4096), ROUTER)},
    "mistral's own names": {"layers.0.feed_forward.gate.weight": ((8, 4096), ROUTER)},
    "qwen2_moe": {"model.layers.0.mlp.gate.weight": ((60, 2048), ROUTER)},
    "deepseek_v3": {"model.layers.3.mlp.gate.weight": ((256, 7168), ROUTER)},
    "deepseek's own names": {"layers.3.ffn.gate.weight": ((256, 7168), ROUTER)},
    "gpt_oss": {
        "model.layers.0.mlp.router.weight": ((32, 2880), ROUTER),
        "model.layers.0.mlp.experts.gate_up_proj_bias": ((32, 5760), "bias"),
    },
    "llama4": {"language_model.model.layers.0.feed_forward.router.weight": ((16, 5120), ROUTER)},
    "dbrx": {"transformer.blocks.0.ffn.router.layer.weight": ((16, 6144), ROUTER)},
    "granitemoe": {"model.layers.0.block_sparse_moe.router.layer.weight": ((32, 1024), ROUTER)},
    "jetmoe": {
        "model.layers.0.mlp.router.layer.weight": ((8, 2048), ROUTER),
        "model.layers.0.self_attention.experts.router.layer.weight": ((8, 2048), ROUTER),
    },
    "switch_transformers": {
        "encoder.block.1.layer.1.mlp.router.classifier.weight": ((8, 768), ROUTER),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ((32, 12), LOGITS),
    },
    "longcat": {"model.layers.0.mlp.router.classifier.weight": ((768, 6144), ROUTER)},
    "hunyuan": {"model.layers.0.mlp.gate.wg.weight": ((64, 4096), ROUTER)},
    "afmoe": {"model.layers.2.mlp.router.gate.weight": ((64, 2048), ROUTER)},
    "ernie4_5_vl_moe": {
        "model.layers.1.mlp.gate.weight": ((64, 2560), ROUTER),
        "model.layers.1.mlp.gate.weight_1": ((2560, 64), ROUTER),
    },
    "gemma4 with experts": {"model.layers.0.router.proj.weight": ((128, 2816), ROUTER)},
    "swin": {
        "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table": ((169, 3), LOGITS),
    },
    "t5": {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ((32, 8), LOGITS)},
    "vit_mae": {"decoder.decoder_pos_embed": ((1, 197, 512), POSITIONS)},
    "inkling2": {
        "model.layers.0.self_attn.k_proj.sconv.static_weight": ((4, 1024), CONV),
    },
    "llama4 (its makers' names)": {"layers.1.feed_forward.router_DE": ((5120, 16), ROUTER)},
    "vit": {"vit.embeddings.position_embeddings": ((1, 197, 768), POSITIONS)},
    "blip-2": {"query_tokens": ((1, 32, 768), POSITIONS)},
    "clip's own names": {
        "positional_embedding": ((77, 512), POSITIONS),
        "attn_mask": ((77, 77), "mask"),
    },
    "xlnet": {"transformer.layer.0.rel_attn.r_w_bias": ((16, 64), "bias")},
    "cohere": {"model.layers.0.self_attn.q_norm.weight": ((96, 128), "norm")},
    "gptj": {"transformer.h.0.attn.embed_positions": ((2048, 64), "position table")},
}

QUANTIZED: dict[str, dict[str, Shape]] = {
    "mamba": {
        "backbone.layers.0.mixer.x_proj.weight": (80, 1536),
        "backbone.layers.0.mixer.dt_proj.weight": (1536, 48),
        "backbone.layers.0.mixer.in_proj.weight": (3072, 768),
        "backbone.embeddings.weight": (50280, 768),
    },
    "jamba": {
        "model.layers.0.mamba.x_proj.weight": (288, 8192),
        "model.layers.1.feed_forward.experts.3.gate_proj.weight": (14336, 4096),
        "model.layers.0.feed_forward.gate_proj.weight": (14336, 4096),
    },
    "zamba": {
        "model.layers.0.mamba.x_proj_weight": (2, 264, 3712),
        "model.layers.0.mamba.dt_proj_weight": (2, 3712, 232),
    },
    "nemotron_h": {"backbone.layers.1.mixer.experts.0.up_proj.weight": (1856, 2688)},
    "vmamba": {"layers.0.blocks.0.op.x_proj_weight": (4, 38, 192)},
    "recurrent_gemma": {"model.layers.0.temporal_block.rg_lru.input_gate_weight": (10, 256, 256)},
    "lfm2": {"model.layers.0.conv.in_proj.weight": (6144, 2048)},
    "llama4 (its makers' names)": {"layers.1.feed_forward.experts.moe_w_in_eD_F": (81920, 8192)},
    "inkling2": {"model.layers.0.self_attn.k_proj.weight": (1024, 4608)},
    "qwen3_next": {
        "model.layers.0.mlp.experts.7.gate_proj.weight": (512, 2048),
        "model.layers.0.mlp.shared_expert.gate_proj.weight": (512, 2048),
    },
    "kimi_linear": {
        "model.layers.1.self_attn.f_a_proj.weight": (128, 2304),
        "model.layers.1.block_sparse_moe.experts.0.w1.weight": (1024, 2304),
        "model.layers.0.mlp.gate_proj.weight": (9216, 2304),
    },
    "rwkv6": {
        "blocks.0.att.time_maa_w1": (2048, 160),
        "blocks.0.att.gate.weight": (2048, 2048),
        "blocks.0.ffn.key.weight": (7168, 2048),
    },
    "mixtral": {"model.layers.0.block_sparse_moe.experts.0.w1.weight": (14336, 4096)},
    "mistral's own names": {"layers.0.feed_forward.experts.0.w1.weight": (14336, 4096)},
    "qwen2_moe": {"model.layers.0.mlp.experts.0.gate_proj.weight": (1408, 2048)},
    "deepseek_v3": {
        "model.layers.0.mlp.gate_proj.weight": (18432, 7168),
        "model.layers.3.mlp.experts.0.gate_proj.weight": (2048, 7168),
    },
    "deepseek's own names": {"layers.3.ffn.experts.0.w1.weight": (2048, 7168)},
    "gpt_oss": {"model.layers.0.mlp.experts.gate_up_proj": (32, 2880, 5760)},
    "llama4": {"language_model.model.layers.0.feed_forward.experts.gate_up_proj": (16, 5120, 16384)},
    "dbrx": {"transformer.blocks.0.ffn.experts.mlp.w1": (172032, 6144)},
    "granitemoe": {"model.layers.0.block_sparse_moe.input_linear.weight": (32, 1024, 1024)},
    "jetmoe": {
        "model.layers.0.mlp.input_linear.weight": (8, 11264, 2048),
        "model.layers.0.self_attention.experts.input_linear.weight": (8, 2048, 2048),
    },
    "switch_transformers": {"encoder.block.1.layer.1.mlp.experts.expert_0.wi.weight": (2048, 768)},
    "longcat": {"model.layers.0.mlp.experts.0.gate_proj.weight": (2048, 6144)},
    "hunyuan": {
        "model.layers.0.mlp.experts.0.gate_proj.weight": (3072, 4096),
        "model.layers.0.mlp.shared_mlp.gate_proj.weight": (3072, 4096),
    },
    "afmoe": {"model.layers.2.mlp.experts.0.gate_proj.weight": (1408, 2048)},
    "ernie4_5_vl_moe": {"model.layers.1.mlp.experts.0.up_gate_proj.weight": (3072, 2560)},
    "gemma4 with experts": {
        "model.layers.0.experts.gate_up_proj": (128, 1408, 2816),
        "model.layers.0.mlp.gate_proj.weight": (2112, 2816),
    },
    "a gate without experts": {
        "model.layers.0.mlp.gate.weight": (11008, 4096),
        "model.layers.0.mlp.router.weight": (4096, 4096),
        "decoder.gateway.gate.weight": (512, 512),
    },
    "an expert's own gate": {
        "model.layers.0.mlp.experts.0.gate.weight": (1408, 2048),
        "model.layers.0.mlp.shared_expert.gate.weight": (1408, 2048),
    },
    "a gate beside a stack of kernels": {
        "block.gate.weight": (8, 64),
        "block.conv.weight": (8, 64, 3),
    },
    "gemma3n": {"model.language_model.layers.0.altup.modality_router.weight": (4, 2048)},
    "images and sound": {
        "vision.patch_embedding.weight": (1024, 3, 14, 14),
        "feature_extractor.conv_layers.0.conv.weight": (512, 1, 10),
        "encoder.layers.0.conv.depthwise_conv.weight": (512, 1, 31),
        "encoder.model.0.conv.conv.weight": (64, 1, 7),
        "encoder.conv1d.weight": (64, 80, 3),
    },
    "bert": {
        "embeddings.word_embeddings.weight": (30522, 384),
        "embeddings.position_embeddings.weight": (512, 384),
        "encoder.layer.0.attention.self.query.weight": (384, 384),
    },
    "xlstm": {"backbone.blocks.0.mlstm_layer.igate_preact.weight": (8, 4096)},
}
