"""`Architecture`: the shape of a model, read from its config (config.json or model_config.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from oomguard.errors import ConfigError, Where

#: Model types whose MLP has two matrices instead of three (no gate).
_UNGATED = frozenset(
    {
        *("gpt2", "gpt_neo", "gpt_neox", "gptj", "falcon", "phi", "opt", "bloom", "starcoder2"),
        *("nemotron", "apertus", "arcee"),
    }
)
#: Model types whose output head is the embedding where their config does not say.
#: How configs name the tokens that a model is made for.
_CONTEXT = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "block_size")
_TIED = frozenset({"gpt2", "gpt_neo", "gemma", "gemma2", "gemma3", "gemma3_text", "falcon", "opt"})
#: Model types with LayerNorm, which keeps its input as it is; RMSNorm keeps it in fp32.
_LAYER_NORM = frozenset({"gpt2", "gpt_neo", "gpt_neox", "gptj", "falcon", "phi", "opt", "stablelm"})
#: Matrices that a model's code keeps as one.
_FUSED = {
    "phi3": frozenset({"qkv", "gate_up"}),
    **dict.fromkeys(("qwen", "falcon", "gpt2", "gpt_neox", "bloom"), frozenset({"qkv"})),
}
# What LoRA's targets call a matrix, in the words of the model types that are known.
_QKV = ("query_key_value", "qkv_proj", "c_attn")
_QUERY = ("q_proj", "query")
_OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "projection")
_GATE = ("gate_proj", "w2", "mlp")
_UP = ("up_proj", "fc1", "dense_h_to_4h", "c_fc", "w1", "mlp")
_GATE_UP = ("gate_up_proj",)
_DOWN = ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "mlp")
#: Model types whose attention cannot run without materialised scores: soft capping, and sinks
#: (transformers 5.23, `_supports_sdpa = False` in models/*/modeling_*.py).
_SOFTCAPPED = frozenset({"gemma2", "gemma4", "gpt_oss", "deepseek_v4"})
#: Model types that put queries and keys through norms of their own, and the key of a config that
#: may ask for them (transformers 5.16, models/*/modeling_*.py).
_QK_NORMS = frozenset(
    {
        *("qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_moe", "gemma3", "gemma3_text", "olmo2"),
        *("olmo3", "olmoe", "exaone4", "hunyuan_v1_dense", "minimax_m2"),
    }
)
_QK_NORM = "use_qk_norm"
#: Model types whose own default is transformers' "gelu_new", made of many small operations.
_GELU_NEW = frozenset({"gpt2", "gpt_neo", "phi"})
_POSITIONS = frozenset({"gpt2", "gpt_neo", "opt"})
_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "decoder_attention_heads"),
    "vocab": ("vocab_size",),
}

#: What configs call the number of experts, of those that every token visits, and of those that the
#: router picks for each token (transformers 5.6, models/*/configuration_*.py).
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_EXPERT_TOKENS = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One weight matrix of a layer; `names` are what LoRA's targets call it."""

    role: str
    inputs: int
    outputs: int
    names: tuple[str, ...]
    count: int = 1  # experts have many of the same

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """What turns images or sound into tokens, with its projector; `patch` is a pixel's edge."""

    kind: str
    layers: int
    hidden: int
    intermediate: int
    parameters: int
    projector: int
    patch: int = 14
    merge: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder; sizes are counts of numbers. `expert_tokens` experts see each token.

    `uncounted` are numbers that the model has beside those of this shape (fewer if negative), where
    its true count is known.
    """

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    gated: bool = True
    tied: bool = False
    layer_norm: bool = False
    softcapped: bool = False
    unfused_gelu: bool = False
    qkv_bias: bool = False
    qk_norms: bool = False
    positions: int = 0
    experts: int = 0
    expert_tokens: int = 0
    linears: tuple[Linear, ...] = ()
    tower: Tower | None = None
    uncounted: int = 0

    @property
    def query(self) -> int:
        """Numbers of all query heads."""
        return self.heads * self.head_size

    @property
    def key_value(self) -> int:
        """Numbers of all key heads, which are as many as value's."""
        return self.kv_heads * self.head_size

    @property
    def layer_linear(self) -> int:
        """Numbers in the matrices of one layer: what quantization packs."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def layer_small(self) -> int:
        """Numbers in norms and biases of one layer."""
        norms = 2 * self.hidden * (2 if self.layer_norm else 1)
        biases = sum(linear.outputs for linear in self.linears) if self.layer_norm else 0
        return norms + (biases or (self.query + 2 * self.key_value if self.qkv_bias else 0))

    @property
    def embedding(self) -> int:
        """Numbers in the input embedding."""
        return self.vocab * self.hidden

    @property
    def head(self) -> int:
        """Numbers in an output head of its own."""
        return 0 if self.tied else self.embedding

    @property
    def without_head(self) -> Architecture:
        """The model with one matrix over the vocabulary: a head for labels is next to nothing."""
        return replace(self, tied=True)

    @property
    def decoder(self) -> int:
        """All numbers but the tower's."""
        layers = self.layers * (self.layer_linear + self.layer_small) + self.uncounted
        return layers + self.embedding + self.head + self.positions * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        """All numbers of the model."""
        tower = self.tower.parameters + self.tower.projector if self.tower else 0
        return self.decoder + tower

    def of_size(self, parameters: int) -> Architecture:
        """Return the same shape with as many numbers in all."""
        return replace(self, uncounted=self.uncounted + parameters - self.parameters)


def from_config(config: Mapping[str, object], parameters: int | None = None) -> Architecture:
    """Read transformers' config.json; `parameters` is the model's true count, where it is known.

    Raises:
        ConfigError: if it does not say how large the model is.
    """
    thinker = config.get("thinker_config")
    if isinstance(thinker, dict):  # Qwen's omni models: what understands, and what speaks
        return from_config({**thinker, "model_type": config.get("model_type")}, parameters)
    text = _text_of(config)
    kind = str(config.get("model_type") or text.get("model_type") or "")
    sizes = {field: _size(text, names) for field, names in _NAMES.items()}
    hidden, heads = sizes["hidden"], sizes["heads"]
    kv_heads = _kv_heads(text, kind, heads)
    head_size = _number(text.get("qk_nope_head_dim")) + _number(text.get("qk_rope_head_dim"))
    head_size = head_size or _number(text.get("head_dim")) or hidden // heads
    intermediate = _intermediate(text, kind, hidden)
    experts = _experts(text)
    gated = kind not in _UNGATED
    expert_size = _number(text.get("moe_intermediate_size")) if experts else 0
    shape = (hidden, heads * head_size, kv_heads * head_size, expert_size or intermediate)
    found = Architecture(
        model_type=kind,
        **sizes,
        kv_heads=kv_heads,
        head_size=head_size,
        intermediate=expert_size or intermediate,
        gated=gated,
        tied=bool(text.get("tie_word_embeddings", kind in _TIED)),
        layer_norm=kind in _LAYER_NORM,
        softcapped=kind in _SOFTCAPPED,
        unfused_gelu=_activation(text, kind) == "gelu_new",
        qkv_bias=kind.startswith(("qwen", "qwen2")) and not kind.startswith("qwen3"),
        qk_norms=kind in _QK_NORMS or bool(text.get(_QK_NORM)),
        positions=_positions(text, kind),
        experts=experts,
        expert_tokens=_first(text, _EXPERT_TOKENS) + _shared_experts(text) if experts else 0,
        linears=_linears(
            shape,
            gated=gated,
            experts=experts,
            fused=_FUSED.get(kind, frozenset()),
            attention=_latent_attention(text, hidden, heads),
        ),
        tower=_tower(config, hidden),
    )
    return found if parameters is None else found.of_size(parameters)


def from_gpt_config(config: Mapping[str, object]) -> Architecture:
    """Read a model_config.yaml, with n_embd, n_layer and mlp_class_name.

    Raises:
        ConfigError: if it does not say how large the model is.
    """
    hidden, heads = _size(config, ("n_embd",)), _size(config, ("n_head",))
    head_size = _number(config.get("head_size")) or hidden // heads
    kv_heads = _number(config.get("n_query_groups")) or heads
    intermediate = _number(config.get("intermediate_size")) or 4 * hidden
    gated = config.get("mlp_class_name", "GptNeoxMLP") != "GptNeoxMLP"
    experts = _number(config.get("n_expert"))
    padded = _number(config.get("padded_vocab_size"))
    multiple = _number(config.get("padding_multiple")) or 512
    vocab = _number(config.get("vocab_size")) or 50254
    shape = (hidden, heads * head_size, kv_heads * head_size, intermediate)
    return Architecture(
        model_type=str(config.get("name") or "gpt"),
        hidden=hidden,
        layers=_size(config, ("n_layer",)),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        intermediate=intermediate,
        vocab=padded or -(-vocab // multiple) * multiple,
        gated=gated,
        layer_norm=config.get("norm_class_name", "LayerNorm") == "LayerNorm",
        softcapped=config.get("attention_logit_softcapping") is not None,
        qkv_bias=bool(config.get("attn_bias")),
        experts=experts,
        expert_tokens=_number(config.get("n_expert_per_token")),
        linears=_linears(shape, gated=gated, experts=experts),
    )


def _linears(
    shape: tuple[int, int, int, int],
    *,
    gated: bool,
    experts: int = 0,
    fused: frozenset[str] = frozenset(),
    attention: tuple[Linear, ...] = (),
) -> tuple[Linear, ...]:
    hidden, query, key_value, intermediate = shape
    output = Linear(role="output", inputs=query, outputs=hidden, names=_OUTPUT)
    attention = attention or (
        (Linear(role="qkv", inputs=hidden, outputs=query + 2 * key_value, names=_QKV), output)
        if "qkv" in fused
        else (
            Linear(role="query", inputs=hidden, outputs=query, names=_QUERY),
            Linear(role="key", inputs=hidden, outputs=key_value, names=("k_proj", "key")),
            Linear(role="value", inputs=hidden, outputs=key_value, names=("v_proj", "value")),
            output,
        )
    )
    count = max(1, experts)
    gate = Linear(role="gate", inputs=hidden, outputs=intermediate, names=_GATE, count=count)
    up = Linear(role="up", inputs=hidden, outputs=intermediate, names=_UP, count=count)
    both = Linear(role="gate_up", inputs=hidden, outputs=2 * intermediate, names=_GATE_UP)
    entrance = (both,) if "gate_up" in fused else (gate, up) if gated else (up,)
    down = Linear(role="down", inputs=intermediate, outputs=hidden, names=_DOWN, count=count)
    router = (Linear(role="router", inputs=hidden, outputs=experts, names=("gate",)),)
    return (
        *attention,
        *entrance,
        down,
        *(router if experts else ()),
    )


def _tower(config: Mapping[str, object], hidden: int) -> Tower | None:
    vision, audio = config.get("vision_config"), config.get("audio_config")
    if isinstance(vision, dict):
        return _vision(vision, hidden)
    return _audio(audio, hidden) if isinstance(audio, dict) else None


def _vision(vision: Mapping[str, object], hidden: int) -> Tower | None:
    width = _number(vision.get("hidden_size")) or _number(vision.get("embed_dim"))
    if "embed_dim" in vision:  # Qwen2-VL: hidden_size is the language model's there
        width = _number(vision.get("embed_dim"))
    layers = _number(vision.get("depth")) or _number(vision.get("num_hidden_layers"))
    if not width or not layers:
        return None
    gated = "out_hidden_size" in vision and "embed_dim" not in vision
    inner = _number(vision.get("intermediate_size")) or 4 * width
    patch = _number(vision.get("patch_size") or vision.get("spatial_patch_size")) or 14
    merge = _number(vision.get("spatial_merge_size")) or 1
    per_layer = 4 * width * width + (3 if gated else 2) * width * inner
    frames = _number(vision.get("temporal_patch_size")) or 1
    merged = width * merge * merge
    projector = merged * merged + merged * hidden if merge > 1 else width * hidden
    return Tower(
        kind="vision",
        layers=layers,
        hidden=width,
        intermediate=inner,
        parameters=layers * per_layer + 3 * frames * patch * patch * width,
        projector=projector,
        patch=patch,
        merge=merge,
    )


def _audio(audio: Mapping[str, object], hidden: int) -> Tower | None:
    width, layers = _number(audio.get("d_model")), _number(audio.get("encoder_layers"))
    if not width or not layers:
        return None
    inner = _number(audio.get("encoder_ffn_dim")) or 4 * width
    mels = _number(audio.get("num_mel_bins")) or 128
    convolutions = 3 * width * (mels + width)
    positions = (_number(audio.get("max_source_positions")) or 1500) * width
    return Tower(
        kind="audio",
        layers=layers,
        hidden=width,
        intermediate=inner,
        parameters=layers * (4 * width * width + 2 * width * inner) + convolutions + positions,
        projector=width * hidden,
        merge=1,
    )


def _latent_attention(text: Mapping[str, object], hidden: int, heads: int) -> tuple[Linear, ...]:
    """Return the matrices of multi-head latent attention; none if the model has another kind.

    Source: transformers 5.6, models/deepseek_v3/modeling_deepseek_v3.py.
    """
    latent = _number(text.get("kv_lora_rank"))
    if not latent:
        return ()
    nope, rope, value, low = (
        _number(text.get(name))
        for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank")
    )
    query = heads * (nope + rope)
    queries = (
        (
            Linear(role="query_a", inputs=hidden, outputs=low, names=("q_a_proj",)),
            Linear(role="query_b", inputs=low, outputs=query, names=("q_b_proj",)),
        )
        if low
        else (Linear(role="query", inputs=hidden, outputs=query, names=_QUERY),)
    )
    down = ("kv_a_proj_with_mqa",)
    return (
        *queries,
        Linear(role="kv_a", inputs=hidden, outputs=latent + rope, names=down),
        Linear(role="kv_b", inputs=latent, outputs=heads * (nope + value), names=("kv_b_proj",)),
        Linear(role="output", inputs=heads * value, outputs=hidden, names=_OUTPUT),
    )


def _experts(text: Mapping[str, object]) -> int:
    """Count the experts of a layer, those that every token visits too; 0 in a dense model.

    Leading dense layers are spread over all: what they have less is taken off each one's experts.
    """
    routed = _first(text, _EXPERTS)
    if not routed:
        return 0
    every = routed + _shared_experts(text)
    layers, dense = _size(text, _NAMES["layers"]), _number(text.get("first_k_dense_replace"))
    size = _number(text.get("moe_intermediate_size"))
    if not dense or not size:
        return every
    dense_size = _number(text.get("intermediate_size")) // size
    return round((every * (layers - dense) + dense_size * dense) / layers)


def _shared_experts(text: Mapping[str, object]) -> int:
    """Count the experts that every token visits, in multiples of a routed one."""
    size = _number(text.get("moe_intermediate_size"))
    shared = _number(text.get("shared_expert_intermediate_size"))
    return _first(text, _SHARED) or (round(shared / size) if size else 0)


def _first(text: Mapping[str, object], names: tuple[str, ...]) -> int:
    return next((n for n in (_number(text.get(name)) for name in names) if n), 0)


def _kv_heads(text: Mapping[str, object], kind: str, heads: int) -> int:
    if kind == "falcon" and not text.get("new_decoder_architecture"):
        return 1 if text.get("multi_query", True) else heads
    return _first(text, ("num_key_value_heads", "num_kv_heads")) or heads


def _intermediate(text: Mapping[str, object], kind: str, hidden: int) -> int:
    names = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "decoder_ffn_dim")
    stated = _first(text, names)
    if kind == "qwen":  # the first Qwen counts both halves of its gated MLP
        return stated // 2
    return stated or 4 * hidden


def _activation(text: Mapping[str, object], kind: str) -> object:
    stated = text.get("activation_function") or text.get("hidden_act")
    return stated or ("gelu_new" if kind in _GELU_NEW else None)


def context_length(config: Mapping[str, object]) -> int | None:
    """Return how many tokens a model is made for, as its config states it; None if it does not."""
    thinker = config.get("thinker_config")
    text = _text_of(thinker if isinstance(thinker, dict) else config)
    return next((length for name in _CONTEXT if (length := _number(text.get(name)))), None)


def _text_of(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config with the values of its language model on top."""
    inner = config.get("text_config") or config.get("llm_config")
    return {**config, **inner} if isinstance(inner, dict) else dict(config)


def _positions(text: Mapping[str, object], kind: str) -> int:
    if kind not in _POSITIONS:
        return 0
    return _number(text.get("n_positions")) or _number(text.get("max_position_embeddings"))


def _size(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    found = _first(config, names)
    if not found:
        raise ConfigError(
            f"the model's config does not say {names[0]}",
            where=Where(key=names[0]),
            next_step="Point to a folder with the model's own config.json.",
        )
    return found


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
