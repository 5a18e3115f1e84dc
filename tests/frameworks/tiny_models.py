"""Configs of tiny models, one of each kind that the dry run has to trace: plain data."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

TEXT: Config = {
    "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip
SMALL = TEXT | {"tie_word_embeddings": False}
LLAMA = SMALL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
QWEN = SMALL | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = SMALL | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32}
MISTRAL = SMALL | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
PHI = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"} | {
    "model_type": "phi", "architectures": ["PhiForCausalLM"]}  # fmt: skip
GPT2: Config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 8192,
                "n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 1024,
                "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # fmt: skip
MIXTRAL = SMALL | {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4,
    "num_experts_per_tok": 2, "intermediate_size": 384, "num_hidden_layers": 4,
}  # fmt: skip
#: Experts beside one that all tokens go to.
QWEN2_MOE = SMALL | {
    "model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 192, "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 384,
}  # fmt: skip
QWEN3_MOE = SMALL | {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 16,
    "num_experts_per_tok": 4, "moe_intermediate_size": 96, "head_dim": 32, "num_hidden_layers": 4,
}  # fmt: skip
#: One expert after the other, as transformers did before version 5 and does on older GPUs.
LOOPED_EXPERTS = {"experts_implementation": "eager"}
#: Attention sinks, and experts that are parameters of their own.
GPT_OSS = SMALL | {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": 8,
    "num_experts_per_tok": 2, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
#: Embeddings per layer, keys and values that layers share, and heads of two sizes.
GEMMA4 = TEXT | {
    "model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "head_dim": 32,
    "global_head_dim": 64, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 8192,
    "hidden_size_per_layer_input": 32, "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}  # fmt: skip
#: Short convolutions in place of attention in some layers.
LFM2 = TEXT | {
    "model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "num_hidden_layers": 6,
    "layer_types": ["conv", "conv", "full_attention"] * 2,
}  # fmt: skip
LFM2_MOE = TEXT | {
    "model_type": "lfm2_moe", "architectures": ["Lfm2MoeForCausalLM"], "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 192, "num_dense_layers": 1,
    "layer_types": ["conv", "conv", "full_attention"] * 2,
}  # fmt: skip
#: Experts behind dense layers, and attention with a gate.
AFMOE = SMALL | {
    "model_type": "afmoe", "architectures": ["AfmoeForCausalLM"], "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 192, "num_dense_layers": 1,
    "num_shared_experts": 1, "head_dim": 32, "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
ARCEE = SMALL | {"model_type": "arcee", "architectures": ["ArceeForCausalLM"],
                 "hidden_act": "relu2"}  # fmt: skip
QWEN_VL: Config = {
    "model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "text_config": TEXT | {"model_type": "qwen2_5_vl_text",
                           "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}},
    "vision_config": {"model_type": "qwen2_5_vl", "depth": 4, "hidden_size": 128, "num_heads": 4,
                      "intermediate_size": 256, "out_hidden_size": 256, "window_size": 112,
                      "fullatt_block_indexes": [1, 3], "patch_size": 14, "in_channels": 3,
                      "spatial_merge_size": 2, "temporal_patch_size": 2},
    "image_token_id": 8000, "video_token_id": 8001, "vision_start_token_id": 8002,
    "vision_end_token_id": 8003,
}  # fmt: skip
QWEN_AUDIO: Config = {
    "model_type": "qwen2_audio", "architectures": ["Qwen2AudioForConditionalGeneration"],
    "text_config": TEXT | {"model_type": "qwen2"},
    "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 128, "encoder_layers": 3,
                     "encoder_attention_heads": 4, "encoder_ffn_dim": 256, "num_mel_bins": 128,
                     "max_source_positions": 1500},
    "audio_token_index": 8000,
}  # fmt: skip
