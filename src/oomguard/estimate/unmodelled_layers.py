"""What a model's layers have that the arithmetic does not know, by model type."""

from __future__ import annotations

from collections.abc import Mapping

from oomguard.job.unmodelled import Direction, Unmodelled

#: Types whose layers are all softmax attention and an MLP or experts, as `Architecture` has them:
#: its count of their parameters agrees with that of their class in transformers 5.23.
KNOWN = frozenset(
    {
        *(
            "arcee",
            "bloom",
            "cohere",
            "cohere2",
            "deepseek",
            "deepseek_v2",
            "deepseek_v3",
            "ernie4_5",
        ),
        *("exaone4", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "gpt2"),
        *("glm4_moe", "glm4_moe_lite", "gpt_neo", "gptj", "gpt_neox", "granite", "helium"),
        *("hunyuan_v1_dense", "idefics3", "internlm2", "internlm3", "internvl", "llama", "llava"),
        *("llava_next", "minimax_m2", "ministral", "ministral3", "mistral", "mistral3", "mixtral"),
        *("nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "smolvlm"),
        *("phi", "phi3", "qwen", "qwen2", "qwen2_5_vl", "qwen2_audio", "qwen2_moe", "qwen2_vl"),
        *("qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_moe", "seed_oss", "smollm3", "stablelm"),
        *("starcoder2",),
    }
)
_LINEAR = "linear attention in most layers"
_MAMBA = "Mamba layers"
_CONVOLUTIONS = "short convolutions in place of attention in most layers"
_ENCODER = "an encoder, not a decoder that predicts the next token"
_SPARSE = "attention to selected tokens, with an indexer"
#: What the layers of types have whose code runs on a GPU as it is traced: tiny models of them take
#: on the CPU what their traces say (tests/frameworks/dryrun_truth.py, OTHER_LAYERS).
_TRACED = {
    **dict.fromkeys(("lfm2", "lfm2_moe"), _CONVOLUTIONS),
    "afmoe": "experts in some layers and gated attention",
    "gemma4": "embeddings per layer, shared keys and values, and attention of two head sizes",
    "gpt_oss": "attention sinks, and experts that are parameters of their own instead of Linear",
}
#: What the layers of other types have (transformers 5.23, models/*/modeling_*.py).
_PARTS = {
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_moe", "kimi_linear", "minimax"), _LINEAR),
    "minicpmv4_6": _LINEAR,
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"), _MAMBA),
    **dict.fromkeys(("jamba", "bamba", "granitemoehybrid", "zamba", "zamba2"), _MAMBA),
    "lfm2_vl": _CONVOLUTIONS,
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert"), _ENCODER),
    **dict.fromkeys(("deberta-v2", "electra", "distilbert", "eurobert"), _ENCODER),
    **dict.fromkeys(("deepseek_v32", "deepseek_v4", "glm_moe_dsa"), _SPARSE),
    "gemma3n": "embeddings per layer, several streams of hidden states and an audio encoder",
    "gemma4_unified": "attention of two head sizes, and images and sound without an encoder",
    "llama4": "experts in some layers, and attention in chunks",
    "mllama": "cross-attention layers",
    "qwen2_5_omni": "audio and vision encoders, and a second model that speaks",
    "qwen3_omni_moe": "audio and vision encoders, and a second model that speaks",
    "whisper": "an encoder and a decoder with cross-attention",
}
#: Keys of configs whose layers are of several kinds.
_MIXED = (
    *("attn_layer_period", "expert_layer_period", "interleave_moe_layer_step"),
    *("mamba_d_state", "expert_ffn_hidden_size", "hybrid_override_pattern"),
)


def unmodelled_layers(config: Mapping[str, object]) -> Unmodelled | None:
    """Return what transformers' config.json says of layers that the arithmetic does not know.

    A trace includes a type that is not known here. It does not stand for layers whose kernels on
    a GPU are other code than runs without one, nor for a model of which only a part is trained.
    """
    kind = str(config.get("model_type") or "")
    part = _PARTS.get(kind) or _TRACED.get(kind)
    if part is not None:
        effect = f"{kind} has {part}, which the estimate does not model"
        traced = kind in _TRACED
        return Unmodelled(key="model", effect=effect, direction=Direction.EITHER, traced=traced)
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    mixed = next((key for key in _MIXED for place in places if place.get(key)), None)
    if mixed is not None:
        effect = f"its layers are of several kinds ({mixed}), but all are counted alike"
        return Unmodelled(key="model", effect=effect, direction=Direction.EITHER)
    if kind in KNOWN:
        return None
    effect = f"the layers of a model of type {kind or '(none)'} are not known: counted as a decoder"
    return Unmodelled(key="model", effect=effect, direction=Direction.EITHER, traced=True)
